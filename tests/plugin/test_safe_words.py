"""What reaches the log: nothing that acts there, no credential, and our own faults in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_tokenpower import cli
from pytest_tokenpower.core.records import RunRecord, VerdictRecord, encode_run
from pytest_tokenpower.runner import fixture as energy_fixture
from pytest_tokenpower.store.store import Store
from tests.support.projects import Project

TEST = """
@quick
def test_a(energy):
    energy(generate)
"""

ACTS = "\x1b]0;OWNED\x07\x1b[2J\u202e\n::error file=a.py::FORGED\n##vso[task.complete]\r\u2028::stop"


def hostile(run: RunRecord) -> RunRecord:
    """Fill a run with text that acts where it is printed raw, as who can write to the store can."""
    measured = run.measurements[0]
    acting = msgspec.structs.replace(
        measured,
        test=f"test_energy.py::test_gone_{ACTS}",
        key={
            name: f"{value}{ACTS}" if isinstance(value, str) else value
            for name, value in measured.key.items()
        },
        facts={f"x{ACTS}": ACTS},
        reasons=(ACTS,),
        verdicts=(VerdictRecord("regressed", against=f"main{ACTS}", reason=ACTS, notes=(ACTS,)),),
    )
    return msgspec.structs.replace(
        run,
        measurements=(measured, acting),
        host={"hostname": ACTS},
        branch=ACTS,
        command=(ACTS,),
        versions={f"python{ACTS}": ACTS},
    )


@pytest.fixture
def store(project: Project) -> Store:
    """Return a store whose one run would act."""
    project.tests(TEST)
    project.run("--energy-save=before", "--energy-storage=kept").assert_outcomes(passed=1)
    store = Store(project.path / "kept")
    (entry,) = store.entries()
    entry.path.write_bytes(encode_run(hostile(store.load(entry))))
    return Store(store.path)


def harmless(text: str) -> str:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", text)
    assert not [line for line in text.splitlines() if re.match(r"\s*::|.*##vso\[", line)]
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",),
        ("show", "--json"),
        ("list",),
        ("list", "--json"),
        ("history", "test_a"),
        ("history", "test_gone"),
        ("compare", "before", "before"),
        ("accept", "nothing", "--up-to=8%", "--reason=x"),
    ],
)
def test_no_command_prints_what_acts(
    store: Store, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*arguments, f"--storage={store.path}"])
    said = capsys.readouterr()
    assert harmless(said.out) + harmless(said.err)


def test_json_stays_the_data_that_was_stored(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--json", f"--storage={store.path}"]) == 0
    (entry,) = store.entries()
    printed = capsys.readouterr().out
    assert msgspec.json.decode(printed, type=RunRecord) == store.load(entry)


def test_a_run_prints_nothing_that_acts(store: Store, project: Project) -> None:
    result = project.run("--energy-baseline=before", "--energy-storage=kept")
    harmless(result.stdout.str().replace("\r\n", "\n"))
    assert "energy: " in result.stdout.str()


def test_a_record_keeps_our_options_only(project: Project) -> None:
    project.tests(TEST)
    project.file("conftest.py", "def pytest_addoption(parser):\n    parser.addoption('--api-key')\n")
    _, run = project.measure("--api-key", "sk-s3cret", "-k", "test_a", "--energy-scope", "gpu")
    assert run.command == (f"--energy-json={project.path / 'run.json'}", "--energy-scope=gpu")


def _broken(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("oh\n::error::no")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_fault_in_a_test_fails_it_in_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, faults: Path
) -> None:
    project.tests(TEST)
    monkeypatch.setattr(energy_fixture.Energy, "finish", _broken)
    result = project.run("--tb=short")
    result.assert_outcomes(failed=1)
    said = harmless(result.stdout.str())
    assert "unexpected ZeroDivisionError: oh ::error::no; this is a fault of pytest-tokenpower" in said
    assert "_broken" not in said
    (report,) = faults.glob("tokenpower-fault-*.txt")
    assert "in _broken" in report.read_text()


@pytest.mark.parametrize(
    ("broken", "loss"),
    [
        ("pytest_tokenpower.store.store.Store.write", "this run is NOT stored: unexpected ZeroDivisionError"),
        ("pytest_tokenpower.runner.session.Session.run_record", "unexpected ZeroDivisionError"),
        ("pytest_tokenpower.gate.verdict.settle", "unexpected ZeroDivisionError"),
        ("pytest_tokenpower.reporting.terminal.summary", "unexpected ZeroDivisionError"),
    ],
)
@pytest.mark.usefixtures("faults")
def test_a_fault_at_the_end_costs_neither_the_summary_nor_goes_unseen(
    project: Project, monkeypatch: pytest.MonkeyPatch, broken: str, loss: str
) -> None:
    project.tests(TEST)
    project.run("--energy-save=before", "--energy-storage=kept").assert_outcomes(passed=1)
    monkeypatch.setattr(broken, _broken)
    result = project.run("--energy-save=after", "--energy-storage=kept", "--energy-baseline=before")
    result.assert_outcomes(passed=1)
    assert [line for line in result.outlines if line.startswith(loss)]
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in result.stdout.str()
    if "summary" not in broken:
        assert result.ret == pytest.ExitCode.INTERNAL_ERROR


@pytest.mark.usefixtures("faults")
def test_a_fault_before_the_tests_refuses_the_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.tests(TEST)
    monkeypatch.setattr("pytest_tokenpower.runner.session.Session.prepare", _broken)
    result = project.run("--energy-autosave")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "unexpected ZeroDivisionError" in result.stderr.str()
    assert "Traceback" not in result.stderr.str()
