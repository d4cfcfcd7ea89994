"""The whole terminal output in each of pytest's modes, at 80 and 120 columns, to the letter."""

from __future__ import annotations

import re
import shlex

import pytest

from pytest_tokenpower.cli import main
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME
from tests.plugin.test_golden import held
from tests.support.projects import ALONE, Project
from tests.support.repositories import Git

TESTS = """
@pytest.mark.power_budget(min_rounds=3, max_rounds=3, regression="10%")
def test_chat(energy):
    energy(generate, {seconds}, prompt=500)

@pytest.mark.power_budget(min_rounds=3, max_rounds=3)
def test_summary(energy):
    energy(generate, 0.3)
"""

MODES = {
    "plain": (),
    "q": ("-q",),
    "qq": ("-qq",),
    "v": ("-v",),
    "n2": ("-n2", *ALONE),
    "no-header": ("--no-header",),
    "no-terminal": ("-p", "no:terminal"),
}

# Of the machine, the day and what is installed.
VARYING = (
    (r" in [\d.]+s\b", " in #s"),
    (r"^(platform|rootdir|plugins|cachedir|metadata|hypothesis profile).*\n", ""),
    (r"^\[gw\d\] .*", "[gw#]"),
    (r"^\.F ", "F. "),  # Workers end in any order.
    (r"^(?:created: .*|\d+ workers? .*|bringing up .*|scheduling .*)\n", ""),
    (r"_{5,}", "___"),
    (r"={5,}", "==="),
)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("mode", MODES)
def test_what_a_person_sees(
    project: Project, monkeypatch: pytest.MonkeyPatch, mode: str, columns: int
) -> None:
    monkeypatch.setattr(VIRTUAL_TIME, "_now_ns", 1_000_000_000_777)
    monkeypatch.setenv("COLUMNS", str(columns))
    project.tests(TESTS.format(seconds=0.3))
    assert project.run("--energy-autosave", "--energy-storage=before", *ALONE).ret == 0
    monkeypatch.setattr(VIRTUAL_TIME, "_now_ns", 1_000_000_000_777)
    project.tests(TESTS.format(seconds=0.4))
    result = project.run("--energy-baseline=./before", "--energy-sort=name", *MODES[mode])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = "".join(f"{line.rstrip()}\n" for line in result.outlines)
    # The table and what explains it fit. Messages do not break their lines: a command that is copied is one line.
    table = re.search(r"^SIMULATED(?:.+\n|\n(?=test ))*", text, re.MULTILINE)
    assert (table is None) == (mode == "no-terminal")
    assert all(len(line) <= columns for line in (table[0] if table else "").splitlines())
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    held(f"terminal-{mode}-{columns}.txt", text)


@pytest.mark.parametrize(
    ("in_git", "storage", "baseline"),
    [
        (True, "", "HEAD"),
        (True, "--energy-storage=my runs", "HEAD"),
        (True, "--energy-storage=before", "./before"),
        (False, "--energy-storage=before", "./before"),
    ],
)
def test_the_next_steps_can_be_run_as_they_stand(
    project: Project, capsys: pytest.CaptureFixture[str], in_git: bool, storage: str, baseline: str
) -> None:
    project.tests(TESTS.format(seconds=0.3))
    project.file(".gitignore", "*\n!*.py")
    if in_git:
        git = Git(project.path)
        git("init", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "--message=one")
    options = [option for option in (storage,) if option]
    assert project.run("--energy-autosave", *options).ret == 0
    project.tests(TESTS.format(seconds=0.4))
    if in_git:
        git("commit", "--quiet", "--all", "--message=two")
        baseline = "HEAD~1" if baseline == "HEAD" else baseline
    result = project.run(f"--energy-baseline={baseline}", *options)
    steps = re.findall(r"^  (?:Next:|Intended\?) tokenpower (.*)", result.stdout.str(), re.MULTILINE)
    assert [step.split()[0] for step in steps] == (["history", "accept"] if in_git else ["history"])
    capsys.readouterr()
    assert main(shlex.split(steps[0])) == 0
    assert "test_energy.py::test_chat\n\n1 run" in capsys.readouterr().out
    for accept in steps[1:]:
        assert main(shlex.split(accept)) == 4
        assert "say why" in capsys.readouterr().err
        assert main(shlex.split(accept.replace("...", "meant"))) == 0
