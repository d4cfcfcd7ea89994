"""`tokenpower noise`: what it answers from kept records, to the letter, and real runs on the simulated board."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from pytest_tokenpower.core.records import GateRecord, MeasurementRecord, RoundRecord, RunRecord
from pytest_tokenpower.gate.noise import MeasuredNoise, NoAnswer, analyse
from pytest_tokenpower.reporting.columns import Layout
from pytest_tokenpower.reporting.terminal import summary
from pytest_tokenpower.runner.session import Session
from pytest_tokenpower.store.baseline import ComparableRuns
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level
from tests.support.kept_records import identical, keep
from tests.support.projects import ALONE
from tests.support.repositories import KEY, TEST
from tests.support.verdicts import judge_stored


def changed(record: RunRecord, change: Callable[[MeasurementRecord], MeasurementRecord]) -> RunRecord:
    return msgspec.structs.replace(record, measurements=tuple(map(change, record.measurements)))


def drifting(record: RunRecord, share: float) -> RunRecord:
    """Return the run with more energy in every round."""

    def dearer(one: RoundRecord) -> RoundRecord:
        assert one.joules is not None
        return msgspec.structs.replace(one, joules=one.joules * (1 + share))

    return changed(record, lambda each: msgspec.structs.replace(each, rounds=tuple(map(dearer, each.rounds))))


def single(runs: list[RunRecord], threshold: float | None = None) -> MeasuredNoise:
    (found,) = analyse(runs, threshold=threshold)
    assert isinstance(found, MeasuredNoise)
    return found


ANSWER = """
tests/energy/test_chat.py::test_chat[bf16]  (ring; 8 runs, 390.9 mJ/token)
  rounds      SD 0.29 %, lag-1 0.00, drift -0.01 ± 0.01 % a round, the meter's own error 0.1 %
  runs        SD 0.23 % (95 %: 0.15 to 0.48 %); at one GPU temperature SD 0.23 % (95 %: 0.15 to 0.48 %)
              drift +0.06 ± 0.03 % a run
  occasions   8: SD 0.23 % from one to the next
  pace        at one pace SD 0.23 %
  can hold    0.89 % (with 95 % confidence 1.6 %) against 5 stored runs; noise floor 0.89 %
  limit 3 %   holds; 0 of 8 runs failed against 5 others (95 %: 0 to 37 %); 8 passed
"""


def test_the_answer_to_the_letter(tmp_path: Path, tokenpower: Command) -> None:
    ended = tokenpower("noise", keep(tmp_path / "kept", identical()))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ANSWER


def test_each_limit_has_its_answer() -> None:
    runs = identical()
    found = single(runs)
    assert found.noise_floor <= found.holds <= found.holds_surely
    noisier = single(identical(run_sd=0.02))
    assert noisier.holds > found.holds
    for threshold, answer in (
        (found.noise_floor * 0.99, "below the noise"),
        (found.holds * 1.001, "likely holds"),
        (found.holds_surely * 1.001, "holds"),
    ):
        assert single(runs, threshold).answer == answer
    assert single(identical(run_sd=0.02), (noisier.noise_floor + noisier.holds) / 2).answer == "tight"


def test_a_limit_below_the_noise_is_refused(tmp_path: Path, tokenpower: Command) -> None:
    kept = keep(tmp_path / "kept", identical(gate=GateRecord(0.005, 5)))
    ended = tokenpower("noise", kept)
    assert ended.code == 1
    assert "  limit 0.5 % REFUSED: below the noise; 0 of 8 runs failed" in ended.out
    assert tokenpower("noise", kept, "--threshold=2%").code == 0
    few = tokenpower("noise", kept, "--threshold=2%", "--baseline-runs=1")
    assert few.code == 1
    assert "against 1 stored runs" in few.out


def test_identical_code_that_fails_is_refused_whatever_its_spread_says(
    tmp_path: Path, tokenpower: Command
) -> None:
    """Two levels, as from two boards: the spread is no normal one, and the gate cries wolf."""
    runs = [drifting(record, 0.2 * (number % 6 == 5)) for number, record in enumerate(identical(18))]
    found = single(runs, 0.1)
    assert found.judged.false_failures == 3
    ended = tokenpower("noise", keep(tmp_path / "kept", runs), "--threshold=10%")
    assert ended.code == 1
    assert "REFUSED" in ended.out


def test_runs_that_go_one_way_are_not_steady(tmp_path: Path, tokenpower: Command) -> None:
    runs = [drifting(record, 0.004 * number) for number, record in enumerate(identical(run_sd=0.0))]
    assert single(runs).unsteady
    assert not single(identical()).unsteady
    out = tokenpower("noise", keep(tmp_path / "kept", runs)).out
    assert re.search(r"drift \+0\.\d\d ± 0\.\d\d % a run: NOT STEADY, warm the machine up", out)


def test_the_temperature_is_taken_out_of_the_runs() -> None:
    """Runs that differ by temperature alone, 0.2 % per °C, hold a finer limit at one temperature."""

    def warmer(one: RoundRecord, celsius: float) -> RoundRecord:
        assert one.joules is not None
        return msgspec.structs.replace(
            one, joules=one.joules * (1 + 0.002 * celsius), temperature_celsius=60 + celsius
        )

    runs = [
        changed(
            record,
            lambda each, base=number % 4: msgspec.structs.replace(  # type: ignore[misc]
                each,
                rounds=tuple(warmer(one, base + at % 5 / 2) for at, one in enumerate(each.rounds)),
            ),
        )
        for number, record in enumerate(identical(run_sd=0.0))
    ]
    found = single(runs)
    assert found.adjusted is not None
    assert found.adjusted.runs.sd < found.raw.runs.sd / 2
    assert found.refusal == ""


def test_a_die_of_unknown_temperature_is_judged_as_read() -> None:
    runs = [
        changed(
            record,
            lambda each: msgspec.structs.replace(
                each,
                rounds=tuple(msgspec.structs.replace(one, temperature_celsius=None) for one in each.rounds),
            ),
        )
        for record in identical()
    ]
    found = single(runs)
    assert (found.adjusted, found.refusal) == (None, "the GPU's temperature is not known")


def test_what_cannot_be_answered_says_why(tmp_path: Path, tokenpower: Command) -> None:
    runs = identical(tests=(TEST, OTHER))
    compares = msgspec.structs.replace(
        at_level(test="tests/t.py::test_two"), comparable=False, variants={"baseline": ()}
    )
    for at, record in enumerate(runs):
        first, second = record.measurements
        if at >= 2:
            second = msgspec.structs.replace(second, comparable=False, reasons=("too hot",))
        if at == 1:
            first = msgspec.structs.replace(first, key=KEY | {"axis.quantization": "fp8"})
        runs[at] = msgspec.structs.replace(record, measurements=(first, second, compares))
    ended = tokenpower("noise", keep(tmp_path / "kept", runs))
    assert ended.code == 1
    assert f"{OTHER}: no answer: 2 valid runs of at least 3: too hot (6 runs)" in ended.out
    assert "left out    run 2: differs from the first in quantization: none here, fp8 there" in ended.out
    assert "test_two: no answer: compares two variants within the test: no stored runs" in ended.out
    without = [msgspec.structs.replace(each, measurements=each.measurements[::2]) for each in runs]
    assert tokenpower("noise", keep(tmp_path / "alone", without)).code == 0
    assert isinstance(analyse(runs)[1], NoAnswer)


def test_a_family_of_tests_needs_a_wider_limit() -> None:
    alone = single(identical())
    (first, *_) = analyse(identical(tests=(TEST, *(f"tests/t.py::test_{n}" for n in range(6)))))
    assert isinstance(first, MeasuredNoise)
    assert (alone.family, first.family) == (1, 7)
    # The others teach how little runs scatter here; that seven may fail costs more.
    assert first.raw.runs.sd == alone.raw.runs.sd
    assert first.holds_surely > alone.holds_surely


def test_json_holds_every_figure(tmp_path: Path, tokenpower: Command) -> None:
    kept = keep(tmp_path / "kept", identical(tests=(TEST, OTHER)))
    answer = json.loads(tokenpower("noise", kept, "--json").out)
    assert answer["runs"] == 8
    one = answer["tests"][0]
    assert (one["test"], one["answer"], one["limit"]) == (TEST, "holds", 0.03)
    assert one["adjusted"]["runs"]["low"] < one["adjusted"]["runs"]["sd"] < one["adjusted"]["runs"]["high"]
    assert one["judged"]["false_failure_interval"] == pytest.approx([0, 0.369], abs=1e-3)


@pytest.mark.parametrize(("level", "kind"), [(0.994, "passed"), (1.003, "inconclusive"), (1.2, "regressed")])
def test_the_gate_itself_warns_whatever_its_verdict(
    pytestconfig: pytest.Config, level: float, kind: str
) -> None:
    stored = ComparableRuns("main@1a2b3c4", tuple(at_level(seed=seed) for seed in range(3)), ("a", "b", "c"))

    def shown(limit: float) -> tuple[str, str]:
        measured = at_level(level, seed=4, run_sd=0.0)
        judged = judge_stored(measured, stored, limit)
        out = StringIO()
        summary(
            pytest.TerminalReporter(pytestconfig, out),
            [msgspec.structs.replace(measured, verdicts=(judged,))],
            cast(Session, SimpleNamespace(baselines=[], claims=())),
            {},
            layout=Layout(),
            width=120,
        )
        return judged.kind, out.getvalue()

    found, text = shown(0.005)
    assert found == kind
    assert re.search(
        r"\n\ntest_chat\[bf16\]: warning: the limit of 0\.5 % is below the noise: rises under [\d.]+ % cannot be told\n"
        r"`tokenpower noise -- PYTEST ARGUMENTS` measures which limit this machine can hold\.\n",
        text,
    )
    assert "warning" not in shown(0.03)[1]


WORK = """
import time
import pytest
from pytest_tokenpower import TokenCount

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, regression="40%")
def test_work(energy):
    def work():
        # Once a round: a busy machine adds its delay to each sleep.
        time.sleep(0.25)
        return TokenCount(prompt=0, generated=10_000)
    energy(work)

def test_plain():
    pass

@pytest.mark.power_budget(min_rounds=2, max_rounds=2)
def test_fails(energy):
    energy(lambda: TokenCount(prompt=0, generated=10))
    assert False
"""
QUICK = [*ALONE, "-p", "no:xdist"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of tests on the simulated board, which is the current one; temporary files go beside it."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "test_energy.py").write_text(WORK)
    # The ini file names a baseline that is not there: judging is not what these runs are for.
    (path / "pytest.ini").write_text(
        f"[pytest]\naddopts = {' '.join(QUICK)}\nenergy_source = simulated\nenergy_warmup_rounds = 1\n"
        "energy_baseline = nowhere\nenergy_baseline_runs = 2\n"
    )
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.chdir(path)
    return path


@pytest.mark.slow
def test_runs_in_fresh_processes(project: Path, tokenpower: Command) -> None:
    ended = tokenpower("noise", "--runs=3", "--keep=kept", "--", "-k", "work or plain", "--energy-autosave")
    assert (ended.code, ended.err) == (0, "")
    text = re.sub(r"\d+ s: test_work \d\.\d+", "# s: test_work #", ended.out)
    assert text.startswith("".join(f"[{number}/3] # s: test_work # mJ/token\n" for number in (1, 2, 3)))
    assert "\ntest_energy.py::test_work  (SIMULATED, not measured: power ring; 3 runs, " in text
    assert "against 2 stored runs" in text
    assert "\n  limit 40 %  holds" in text
    kept = sorted(each.name for each in (project / "kept").glob("*.json"))
    assert kept == ["noise-01.json", "noise-02.json", "noise-03.json"]
    assert not list((project.parent / "scratch").glob("tokenpower-noise-*"))
    assert not (project / ".tokenpower").exists()
    assert tokenpower("noise", "--from=kept").out == ended.out.split("J/token\n", 3)[3]
    # A record that somebody has taken away leaves a gap; none that is there is written over, or counted twice.
    (project / "kept" / "noise-01.json").unlink()
    before = {each.name: each.read_bytes() for each in (project / "kept").glob("*.json")}
    more = tokenpower("noise", "--runs=4", "--keep=kept", "--", "-k", "work or plain", "--energy-autosave")
    assert "; 6 runs, " in more.out
    assert all((project / "kept" / name).read_bytes() == data for name, data in before.items())
    assert "  occasions   1 occasion: what another day brings is not in these figures" in more.out
    assert len(list((project / "kept").glob("*.json"))) == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-k", "plain"], "`pytest -k plain` runs no test that measures energy: nothing to repeat"),
        (["-k", "fails"], "gave no valid measurement: test_fails: the test failed by itself"),
        (
            ["missing.py"],
            r"run 1 of pytest missing.py in .* measured nothing \(pytest.* 4\):\n.*not found: .*missing.py",
        ),
    ],
)
def test_runs_that_measure_nothing_end_it_at_once(
    project: Path, tokenpower: Command, arguments: list[str], complaint: str
) -> None:
    ended = tokenpower("noise", "--", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(f"tokenpower noise: .*{complaint}", ended.err, re.DOTALL)
    assert not list((project.parent / "scratch").glob("tokenpower-noise-*"))


def test_an_interrupt_leaves_nothing_behind(project: Path) -> None:
    command = [sys.executable, "-m", "pytest_tokenpower", "noise", "--", "-k", "work"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores the interrupt, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as started:
        assert started.stdout is not None
        assert "[1/8]" in started.stdout.readline()
        time.sleep(0.3)
        os.killpg(started.pid, signal.SIGINT)
        _, complaint = started.communicate()
    assert (started.returncode, complaint) == (130, "tokenpower noise: interrupted\n")
    assert not list((project.parent / "scratch").glob("tokenpower-noise-*"))
    # pytest-benchmark, where it is installed, leaves a folder of its own.
    left = {each.name for each in project.iterdir()} - {".benchmarks"}
    assert left == {"pytest.ini", "test_energy.py"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--runs=2"], "--runs=2: must be at least 3"),
        (["--threshold=5"], "--threshold=5: is 500%: write '5%' for 5 percent"),
        (["--threshold=many"], "--threshold=many: must be a share such as '3%' or 0.03"),
        (["--baseline-runs=0"], "--baseline-runs=0: must be at least 1"),
        (["--from=missing"], "--from=missing: is no folder"),
        (["--from=.", "--", "-q"], "--from runs nothing: leave the pytest arguments away"),
        (["--from=."], r"--from=.: holds no record \(\*.json\)"),
        (["--keep=file/below"], "--keep=file/below: cannot be made: Not a directory"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenpower: Command,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    ended = tokenpower("noise", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.fullmatch(f"tokenpower noise: {complaint}\n", ended.err)
