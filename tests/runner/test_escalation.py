"""--energy-max-seconds: doubtful tests restarted in fresh processes, and judged at the levels of several looks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
from pytest_tokenpower.core.subprocesses import group_members
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.gate.verdict import settle
from pytest_tokenpower.runner.child import ChildRun, single_test_arguments
from pytest_tokenpower.runner.restarts import Case, Escalation, restarted
from tests.support.levels import SUPPLY, supply
from tests.support.measurements import measured, stored
from tests.support.projects import ALONE, Project
from tests.support.verdicts import judge_stored, text

pytestmark = pytest.mark.slow

BASELINE = stored(0.2, 0.20112, 0.19888, 0.20168, 0.19832)
LIMIT = 0.03


def judged(level: float, name: str = "t", **more: object) -> MeasurementRecord:
    """Return a measurement as the run itself leaves it: at the first look."""
    from msgspec.structs import replace

    found = measured(f"x.py::{name}", level)
    return replace(found, verdicts=(judge_stored(found, BASELINE, LIMIT, look=1),), **more)


def judge(
    first: MeasurementRecord, verdict: VerdictRecord, restarts: object, look: int | None
) -> VerdictRecord:
    return judge_stored(first, BASELINE, LIMIT, restarts=restarts, look=look)  # type: ignore[arg-type]


class Machine:
    """Restarts that give the levels of a script and take the seconds of another, on a clock of their own."""

    def __init__(self, levels: dict[str, list[float | str]], seconds: float = 10.0) -> None:
        self.levels = levels
        self.seconds = seconds
        self.now = 0.0
        self.ran: list[str] = []
        self.said: list[str] = []

    def restart(self, test: str, left_s: float) -> MeasurementRecord:
        name = test.rpartition("::")[2]
        self.ran.append(name)
        self.now += self.seconds
        assert left_s >= self.seconds
        found = self.levels[name].pop(0)
        if isinstance(found, str):
            raise TokenPowerError(found)
        return measured(test, found)

    def decide(self, *cases: Case, max_seconds: float) -> dict[str, VerdictRecord]:
        Escalation(self.restart, judge, max_seconds, say=self.said.append, clock=lambda: self.now).decide(
            cases
        )
        return {case.name: case.measured.verdicts[0] for case in cases}


def test_at_the_first_look_only_the_certain_is_decided() -> None:
    kinds = {level: judged(level).verdicts[0].kind for level in (0.15, 0.196, 0.2, 0.203, 0.21, 0.3)}
    assert kinds == {
        0.15: "improved", 0.196: "passed", 0.2: "passed", 0.203: "doubtful", 0.21: "doubtful", 0.3: "regressed",
    }  # fmt: skip
    assert judge_stored(measured("t", 0.212), BASELINE, LIMIT).kind == "regressed"
    assert "to be restarted" in text(judged(0.21).verdicts[0])
    assert settle([judged(0.21)]) == {}


def test_a_real_regression_fails_and_noise_passes_after_restarts() -> None:
    machine = Machine({"worse": [0.2121], "same": [0.2015, 0.2015]})
    worse, same = Case(judged(0.212, "worse"), 10.0), Case(judged(0.2015, "same"), 10.0)
    verdicts = machine.decide(same, worse, max_seconds=1000)
    assert verdicts["worse"].kind == "regressed"
    assert verdicts["same"].kind == "passed"
    assert "Over 2 runs of this code, each in a fresh process." in text(verdicts["worse"])
    # The one that is nearer to failing comes first.
    assert machine.ran[0] == "worse"
    assert [len(case.measured.restarts) for case in (worse, same)] == [
        machine.ran.count("worse"),
        machine.ran.count("same"),
    ]


def test_the_last_look_leaves_nothing_doubtful() -> None:
    machine = Machine({"t": [0.2055, 0.2055]})
    assert machine.decide(Case(judged(0.2055), 10.0), max_seconds=1000)["t"].kind == "inconclusive"
    assert machine.ran == ["t", "t"]


def test_no_restart_is_begun_that_cannot_end_in_time() -> None:
    machine = Machine({"one": [0.206, 0.206], "two": []})
    verdicts = machine.decide(
        Case(judged(0.206, "one"), 10.0), Case(judged(0.2055, "two"), 10.0), max_seconds=29
    )
    assert machine.ran == ["one", "one"]
    assert verdicts["two"].kind == "inconclusive"
    assert "it takes about 10 s, and 9 s were left; --energy-max-seconds=40 would do" in text(verdicts["two"])
    assert machine.said[-1].startswith("no time for more restarts: two left as they are")


def test_what_there_is_no_time_for_is_decided_by_the_plain_rule() -> None:
    """A short time for restarts must not let through what would have failed without any."""
    verdict = Machine({}).decide(Case(judged(0.212), 10.0), max_seconds=5)["t"]
    plain = judge_stored(measured("t", 0.212), BASELINE, LIMIT)
    assert (verdict.kind, verdict.p_value) == (plain.kind, plain.p_value) == ("regressed", plain.p_value)
    assert "No time for a restart" in text(verdict)


def test_a_restart_takes_as_long_as_the_ones_before_it() -> None:
    """Two seconds were guessed and ten it took: the second one would end too late."""
    machine = Machine({"t": [0.206]})
    machine.decide(Case(judged(0.206), 2.0), max_seconds=19)
    assert machine.ran == ["t"]


@pytest.mark.parametrize("level", [0.206, 0.212])
def test_a_restart_that_fails_ends_it_with_the_reason(level: float) -> None:
    machine = Machine({"t": ["it crashed"]})
    verdict = machine.decide(Case(judged(level), 10.0), max_seconds=1000)["t"]
    assert "Restart 1 gave nothing: it crashed" in text(verdict)
    assert verdict.kind == judge_stored(measured("t", level), BASELINE, LIMIT).kind != "doubtful"
    assert machine.ran == ["t"]


def _always(found: MeasurementRecord, test: str, left_s: float) -> MeasurementRecord:
    return found


def test_a_restart_of_something_else_does_not_count() -> None:
    from msgspec.structs import replace

    for other, words in (
        (replace(measured("x.py::t", 0.2), key={"gpu.name": "other"}), "it differs in GPU"),
        (replace(measured("x.py::t", 0.2), comparable=False, reasons=("too hot",)), "too hot"),
    ):
        case = Case(judged(0.206, key={"gpu.name": "one"}), 1.0)
        Escalation(partial(_always, other), judge, 100).decide([case])
        assert words in text(case.measured.verdicts[0])
        assert not case.measured.restarts


def test_an_interrupt_leaves_no_verdict_doubtful() -> None:
    def interrupted(test: str, left_s: float) -> MeasurementRecord:
        raise KeyboardInterrupt

    case = Case(judged(0.2055), 1.0)
    with pytest.raises(KeyboardInterrupt):
        Escalation(interrupted, judge, 100).decide([case])
    assert case.measured.verdicts[0].kind == "inconclusive"
    assert "The run ended before it could be restarted" in text(case.measured.verdicts[0])


def test_a_large_family_is_held_to_its_level_at_every_look() -> None:
    first = measured("t", 0.26)
    assert judge_stored(first, BASELINE, LIMIT, look=1).kind == "regressed"
    assert judge_stored(first, BASELINE, LIMIT, look=1, family=500).kind == "doubtful"


PROJECT = """
import os
from pathlib import Path

from at_level import at_level

LEVELS = {levels}


@pytest.fixture(scope="session")
def engine():
    '''Holds the GPU, as long as the run's tests last.'''
    Path("held").mkdir()
    yield
    Path("held").rmdir()


@pytest.mark.power_budget(regression="3%", key_ignore="generated_tokens")
@pytest.mark.parametrize("name", list(LEVELS))
def test_it(energy, engine, name):
    runs = Path(f"{{name}}.runs")
    number = len(runs.read_text()) if runs.exists() else 0
    runs.write_text("x" * (number + 1))
    level = LEVELS[name][number]
    if level == "crash":
        Path("held").rmdir()
        os._exit(3)
    at_level(energy, level)
"""


def test_the_whole_way(project: Project) -> None:
    """The level of three stored runs is 1; what it becomes is scripted, process by process."""
    levels = {
        "worse": [0.9964, 1, 1.0036, 1.06, 1.06],
        "noise": [0.9964, 1, 1.0036, 1.016, 1.014],
        "gone": [0.9964, 1, 1.0036, 1.028, "crash"],
        "fine": [0.9964, 1, 1.0036, 1],
    }
    supply(project)
    project.tests(PROJECT.format(levels=levels))
    project.ini("energy_storage = store")
    for _ in range(3):
        assert project.run(*ALONE, SUPPLY, "--energy-autosave").ret == 0
    result, run = project.measure(
        *ALONE,
        SUPPLY,
        "-k",
        "test_it",
        "--energy-autosave",
        "--energy-baseline=./store",
        "--energy-max-seconds=60",
        ".",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "energy: restart 1 of test_it[[]worse[]], about * s of the 60 s left",
            "energy: test_it[[]worse[]]: regressed",
            "REGRESSED +* % (limit 3 %): test_it[[]worse[]] takes * *J/token; ./store took *",
            "*Over 2 runs of this code, each in a fresh process.",
            "test_it[[]noise[]] * passed",
            "test_it[[]gone[]] * inconclusive",
            "  Restart 1 gave nothing: *measured nothing (pytest ended with exit status 3)*",
        ]
    )
    kinds = {
        one.test.partition("[")[2][:-1]: (one.verdicts[0].kind, len(one.restarts)) for one in run.measurements
    }
    assert kinds == {
        "worse": ("regressed", 1), "noise": ("passed", 1), "gone": ("inconclusive", 0), "fine": ("passed", 0),
    }  # fmt: skip
    # A restart stores nothing, and repeats its own test alone.
    assert len(list((project.path / "store/runs").glob("*.json"))) == 4
    assert {path.stem: len(path.read_text()) for path in project.path.glob("*.runs")} == {
        "worse": 5, "noise": 5, "gone": 5, "fine": 4,
    }  # fmt: skip
    stored_run = max((project.path / "store/runs").glob("*.json"))
    assert json.loads(stored_run.read_text())["measurements"][0]["restarts"]


def test_under_xdist_the_controller_restarts_when_the_workers_are_done(project: Project) -> None:
    supply(project)
    project.tests(PROJECT.format(levels={"worse": [0.9964, 1, 1.0036, 1.045, 1.045]}))
    project.ini("energy_max_seconds = 60", "energy_baseline = before")
    for _ in range(3):
        assert project.run(*ALONE, SUPPLY, "--energy-save=before", "-o", "energy_baseline=").ret == 0
    result = project.run(*ALONE, SUPPLY, "-n1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["energy: restart 1 of test_it[[]worse[]], *", "REGRESSED +*"])


def test_seconds_are_checked(project: Project) -> None:
    for value in ("soon", "-1", "inf", "nan"):
        result = project.run(f"--energy-max-seconds={value}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --energy-max-seconds={value}: must be a number of seconds*"])


def test_a_child_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_tokenpower.runner.child.PATIENCE_S", 0.2)
    (tmp_path / "test_hangs.py").write_text(
        "import os, signal, subprocess, sys, time\n"
        "def test_hangs():\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open('group.new', 'w').write(str(os.getpgid(0)))\n"
        "    os.rename('group.new', 'group')\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]")
    child = ChildRun(tmp_path, [*ALONE, "-s"])
    group = tmp_path / "group"
    # Its time is over as soon as it hangs, however long it took to get there.
    clock = SimpleNamespace(monotonic=lambda: 1e9 if group.exists() else 0.0, sleep=time.sleep)
    monkeypatch.setattr("pytest_tokenpower.runner.child.time", clock)
    with pytest.raises(TokenPowerError, match=r"a restart .* was ended after 60 s"):
        child.run(tmp_path / "run.json", "a restart", timeout_s=60.0)
    assert group_members(int(group.read_text())) == ()


@pytest.mark.parametrize(
    "handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "in the background of a shell"]
)
def test_a_child_ends_with_the_run_that_waits_for_it(tmp_path: Path, handler: signal.Handlers) -> None:
    (tmp_path / "test_hangs.py").write_text(
        "import os, time\n"
        "def test_hangs():\n"
        "    open('pid.new', 'w').write(str(os.getpid()))\n"
        "    os.rename('pid.new', 'pid')\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]")
    program = (
        "from pathlib import Path; from pytest_tokenpower.runner.child import ChildRun\n"
        f"ChildRun(Path({str(tmp_path)!r}), {list(ALONE)!r}).run(Path({str(tmp_path)!r}, 'run.json'), 'it')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),  # noqa: PLW1509
    ) as run:
        until = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
        assert group_members(pid)
        run.kill()
    while group_members(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not group_members(pid)


def test_a_restart_repeats_the_command_line_for_one_test_alone() -> None:
    given = "-x -k chat -m gpu --rootdir tests --energy-autosave --energy-max-seconds 60"
    given += " tests a.py::t"
    arguments = single_test_arguments(
        given.split(), ["tests", "a.py::t"], "sub/a.py::t[x-1]", Path("/r"), Path("/r/tox.ini")
    )
    assert arguments == [
        "-x", "-k", "chat", "-m", "gpu", "--rootdir", "tests", "--rootdir=/r", "--config-file=/r/tox.ini",
        "-k", "", "-m", "", "/r/sub/a.py::t[x-1]",
    ]  # fmt: skip


@pytest.mark.parametrize("others", [["x.py::other", "x.py::third"], []])
def test_what_was_measured_of_other_tests_is_no_restart(tmp_path: Path, others: list[str]) -> None:
    (tmp_path / "1.log").write_text("what it printed\n")
    found = SimpleNamespace(measurements=[measured(name, 0.1) for name in others])
    child = SimpleNamespace(run=lambda *arguments, **more: found)
    with pytest.raises(TokenPowerError, match=r"(?s)not x.py::it:.*what it printed"):
        restarted(child, tmp_path, "x.py::it", 1, 60.0)  # type: ignore[arg-type]
