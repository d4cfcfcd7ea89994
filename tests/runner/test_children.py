"""What a run makes of the runs that it starts: their failures, their options, and tests that they fail afterwards."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import OTHER_VARIANT, MeasurementRecord, RunRecord, VerdictRecord
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.gate.operating_point import unlikeness
from pytest_tokenpower.gate.verdict import Policy
from pytest_tokenpower.plugin.restarts import PendingRestarts
from pytest_tokenpower.plugin.results import Gatherer
from pytest_tokenpower.plugin.state import MEASUREMENTS
from pytest_tokenpower.runner.child import ChildRun, single_test_arguments
from pytest_tokenpower.runner.compare import CompareArgs
from pytest_tokenpower.runner.rerun import Rerun
from pytest_tokenpower.runner.restarts import Case, Escalation
from tests.support.measurements import measured
from tests.support.verdicts import text

pytestmark = pytest.mark.slow

TEST = "x.py::t"


def run(*measurements: MeasurementRecord, failures: Mapping[str, str] | None = None) -> RunRecord:
    return RunRecord("id", "2026", measurements, failures=dict(failures or {}))


def on(found: MeasurementRecord, *devices: str) -> MeasurementRecord:
    return replace(
        found, rounds=tuple(replace(one, device_joules=dict.fromkeys(devices, 1.0)) for one in found.rounds)
    )


def judged(
    baseline: list[RunRecord], candidate: list[RunRecord], ignore: tuple[str, ...] = ()
) -> VerdictRecord:
    found = Rerun("main", tuple(baseline), tuple(candidate)).judge(TEST, Policy(0.03, ignore), {})
    assert found is not None
    return found.verdicts[-1]


QUIET = ("-p", "no:cacheprovider", "-p", "no:terminal")

GOOD = [run(measured(TEST, 0.2)), run(measured(TEST, 0.2))]


def test_what_fails_in_its_own_process_is_no_skip() -> None:
    broken = run(failures={TEST: "AssertionError: no engine"})
    none = Rerun("main", tuple(GOOD), (broken, broken))
    assert none.judge(TEST, Policy(0.03), {}) is None
    assert none.failure(TEST) == "AssertionError: no engine"
    assert none.failure("x.py::other") == ""
    for candidate in ([GOOD[0], broken], [broken, GOOD[0]]):
        verdict = judged(GOOD, candidate)
        assert (verdict.kind, text(verdict).partition("own: ")[2]) == (
            "invalid",
            "it failed: AssertionError: no engine",
        )
    assert "only 1 of 2 runs measured it" in text(judged(GOOD, [GOOD[0], run()]))
    assert judged(GOOD, GOOD).kind == "passed"


def test_a_baseline_that_fails_is_not_one_without_the_test() -> None:
    broken = run(failures={TEST: "ImportError: gone"})
    assert "its run of this test failed: ImportError: gone" in text(judged([broken, broken], GOOD))
    assert "its commit has no such test" in text(judged([run(), run()], GOOD))
    assert "Only 1 of 2 runs of main could be used" in text(judged([GOOD[0], broken], GOOD))
    assert "Only" not in text(judged(GOOD, GOOD))


def test_runs_of_other_work_or_on_other_devices_are_not_compared() -> None:
    other = replace(measured(TEST, 0.2), key={"generated_tokens": 999})
    elsewhere = on(measured(TEST, 0.2), "GPU-b")
    here = on(measured(TEST, 0.2), "GPU-a")
    for candidate in ([here, elsewhere], [here, other]):
        assert judged([run(here), run(here)], [run(one) for one in candidate]).kind == "no baseline"
    assert judged(GOOD, [GOOD[0], run(other)], ("generated_tokens",)).kind == "passed"
    assert "it ran on GPU-b, the run itself on GPU-a" in text(judged([run(elsewhere)] * 2, [run(here)] * 2))
    # A test that is meant to use more of them says so by the key field that it leaves out.
    assert unlikeness(here, on(here, "GPU-a", "GPU-b")) == ""


def test_a_test_that_compares_by_itself_keeps_its_verdict() -> None:
    own = VerdictRecord("passed", OTHER_VARIANT, change=-0.3)
    first = measured(TEST, 0.2)
    both = run(replace(first, comparable=False, variants={"baseline": first.rounds}, verdicts=(own,)))
    assert judged([both, both], [both, both]) == own


def test_a_restart_may_differ_where_the_baseline_may() -> None:
    first = replace(
        measured(TEST, 0.2),
        key={"generated_tokens": 1},
        verdicts=(VerdictRecord("doubtful", p_value=0.1),),
    )
    again = replace(first, key={"generated_tokens": 2})
    for ignore, restarts in (((), 0), (("generated_tokens",), 1)):
        case = Case(first, 1.0, ignore)
        judge = lambda first, verdict, restarts, look: replace(verdict, kind="passed")  # noqa: E731
        Escalation(lambda test, left_s: again, judge, 100).decide([case])
        assert len(case.measured.restarts) == restarts


def test_a_parameter_with_slashes_stays_what_it_is() -> None:
    name = "sub/a.py::t[http://host//v1/./x]"
    assert single_test_arguments([], [], name, Path("/r"), None)[-1] == f"/r/{name}"


def test_a_child_knows_the_options_of_the_cache_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --ff --strict-config\ncache_dir = cache\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def engine(): raise OSError('no engine\\nat all')\n"
        "def test_it(engine): pass\n"
        "def test_fine(): pass\n"
    )
    before = files(tmp_path)
    quick = [part for name in ("hypothesispytest", "xdist", "rerunfailures") for part in ("-p", f"no:{name}")]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = ChildRun(tmp_path, quick).run(tmp_path / "run.json", "a restart")
    assert found.failures == {"test_it.py::test_it": "OSError: no engine"}
    assert {path.name for path in {*files(tmp_path)} - {*before}} == {"run.json", "run.log"}


def report(test: str, verdict: VerdictRecord, outcome: str = "passed", **more: object) -> pytest.TestReport:
    found = replace(measured(test, 0.2), verdicts=(verdict,))
    complaint = message(verdict, test, failing=True) if verdict.kind == "regressed" else None
    return pytest.TestReport(
        test, ("x.py", None, test), {}, outcome, complaint, "call", energy=msgspec.to_builtins(found), **more  # type: ignore[arg-type]
    )  # fmt: skip


def files(folder: Path) -> list[Path]:
    """All that is in a folder, but for what pytest-benchmark makes wherever it is loaded."""
    return sorted(path for path in folder.rglob("*") if ".benchmarks" not in path.parts)


@pytest.mark.parametrize("where", ["command line", "ini", "environment"])
def test_a_child_leaves_the_files_of_its_parent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "project"
    kept = [folder / name for name in ("report.xml", "run.log", ".coverage", "temporary/left", "report.html")]
    (folder / "temporary").mkdir(parents=True)
    for path in kept:
        path.write_text("of the parent")
    (folder / "test_it.py").write_text(
        "import logging\n"
        "def test_it(tmp_path):\n    logging.getLogger().warning('heard')\n    (tmp_path / 'x').touch()\n"
    )
    options = [
        "--junitxml=report.xml",
        "--log-file=run.log",
        "--basetemp=temporary",
        "--lf",
        "--lfnf=none",
        "--sw",
    ]
    if importlib.util.find_spec("pytest_cov"):
        options += ["--cov=test_it", "--cov-report="]
    if importlib.util.find_spec("pytest_html"):
        options += ["--html=report.html"]
    given = " ".join(options)
    (folder / "pytest.ini").write_text(
        f"[pytest]\nlog_file = run.log\n{f'addopts = {given}' * (where == 'ini')}\n"
    )
    (folder / "coveragerc").write_text("[run]\nbranch = true\n")
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COV_CORE_CONFIG"):
        monkeypatch.setenv(name, str(folder / "coveragerc"))
    monkeypatch.setenv("COV_CORE_SOURCE", str(folder))
    monkeypatch.setenv("COV_CORE_DATAFILE", str(folder / ".coverage"))
    if where == "environment":
        monkeypatch.setenv("PYTEST_ADDOPTS", given)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before = files(folder)
    found = ChildRun(folder, options if where == "command line" else []).run(
        tmp_path / "run.json", "a restart"
    )
    assert found.failures == {}
    assert "1 passed" in (tmp_path / "run.log").read_text()
    assert files(folder) == before
    assert [path.read_text() for path in kept] == ["of the parent"] * len(kept)


def told(
    config: pytest.Config, reports: Sequence[pytest.TestReport], error: BaseException | None = None
) -> list[tuple[str, str, str]]:
    """Return what another plugin hears of the tests of a run.

    Test, outcome and complaint of each report, in their order.
    """
    heard: list[tuple[str, str, str]] = []

    class Listener:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            heard.append((report.nodeid, report.outcome, str(report.longrepr or "")))

    config.pluginmanager.register(Listener())
    gatherer = Gatherer(config)
    config.pluginmanager.register(gatherer)
    loop = gatherer.pytest_runtestloop()
    next(loop)
    for each in reports:
        config.hook.pytest_runtest_logreport(report=each)
    if error is not None:
        with pytest.raises(type(error)):
            loop.throw(error)
    else:
        with pytest.raises(StopIteration):
            loop.send(True)
    return heard


UNDECIDED = VerdictRecord(
    "inconclusive", "main", value=1.09, baseline_value=1.0, change=0.09, change_low=-0.1, change_high=0.2,
    p_value=0.009, threshold=0.03, baseline_runs=("a",), undecided="more runs", provisional=True,
)  # fmt: skip
CERTAIN = replace(UNDECIDED, kind="regressed", p_value=0.0001)


def test_settling_fails_what_passed_and_nothing_else(pytester: pytest.Pytester) -> None:
    config = pytester.parseconfigure("--energy-baseline=main", *QUIET)
    heard = told(
        config,
        [
            report("x.py::certain", CERTAIN, "failed"),
            report("x.py::settled", UNDECIDED),
            report("x.py::expected", replace(UNDECIDED, p_value=0.002), wasxfail="known"),
            report("x.py::budget", replace(UNDECIDED, p_value=0.002), "failed"),
        ],
    )
    assert [(test, outcome) for test, outcome, _ in heard] == [
        ("x.py::certain", "failed"), ("x.py::expected", "passed"), ("x.py::budget", "failed"),
        ("x.py::settled", "failed"),
    ]  # fmt: skip
    assert heard[-1][2].splitlines() == [
        "REGRESSED +9.0 % (limit 3 %): settled takes 1.090 J/token; main took 1.000 (1 run).",
        "  +9.0 % [-10.0, +20.0] (95 % interval), one-sided p = 0.009.",
        "  Settled with all comparisons of this run (Holm).",
        "  Provisional: fewer than three occasions of this test are stored, so that its own noise is not known.",
    ]
    found = {
        one.test.rpartition(":")[2]: [v.kind for v in one.verdicts] for one in config.stash[MEASUREMENTS]
    }
    # What failed though its verdict does not fail it has failed by itself.
    assert found == {
        "certain": ["regressed"],
        "settled": ["regressed"],
        "expected": ["regressed"],
        "budget": [],
    }


def test_an_interrupt_fails_what_it_left_regressed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(
        self: PendingRestarts,
        measurements: list[MeasurementRecord],
        decided: dict[str, MeasurementRecord],
        *,
        complete: bool,
    ) -> None:
        assert not complete
        decided.update({one.test: replace(one, verdicts=(CERTAIN,)) for one in measurements})

    monkeypatch.setattr(PendingRestarts, "decide", decide)
    config = pytester.parseconfigure("--energy-baseline=main", *QUIET)
    [(test, outcome, _)] = told(
        config, [report("x.py::t", replace(UNDECIDED, kind="doubtful"))], KeyboardInterrupt()
    )
    assert (test, outcome) == ("x.py::t", "failed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at_least": "100%"}, "at_least='100%'): must be below 100 %"),
        ({"at_least": "5%", "at_most": "1%"}, "has one limit"),
        ({"at_least": -0.1}, "at_least=-0.1): must be a share"),
        ({"restarts": 0}, "restarts=0): must be an integer of at least 1"),
        ({"restarts": "2"}, "restarts='2'): must be an integer of at least 1"),
        ({"restarts": 2}, "callables of this process have one restart"),
        ({"candidate": None}, "candidate=None): must be a callable, or an engine to start"),
    ],
)
def test_what_cannot_be_compared_is_said_before_it_is_measured(
    arguments: dict[str, object], words: str
) -> None:
    given: dict[str, object] = {
        "baseline": print, "candidate": repr, "at_least": None, "at_most": None, "restarts": 1, "names": None,
    }  # fmt: skip
    with pytest.raises(UsageError) as raised:
        CompareArgs.of(TEST, **{**given, **arguments})  # type: ignore[arg-type]
    assert f"{TEST}: energy.compare(" in str(raised.value)
    assert words in str(raised.value)
    assert CompareArgs.of(TEST, **given).names == ("print", "repr")  # type: ignore[arg-type]
