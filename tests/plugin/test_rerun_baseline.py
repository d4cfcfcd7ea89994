"""--energy-rerun-baseline: real git, real child runs, on the simulated board."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_tokenpower.runner.child import child_arguments
from pytest_tokenpower.runner.rerun import moved
from tests.support.projects import ALONE, Project

pytestmark = pytest.mark.slow

TESTS = """
from engine import SECONDS

@pytest.mark.power_budget(min_rounds=3, max_rounds=3, regression="5%")
def test_work(energy):
    energy(generate, SECONDS)

def test_plain():
    assert SECONDS
"""

MORE = """
@quick
@pytest.mark.power_budget(regression="10%")
def test_{name}(energy):
    energy(generate, 0.05)
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(project: Project) -> Path:
    """Return the project's folder: a repository whose main sleeps 50 ms a round; HEAD is a branch on top of it."""
    project.tests(TESTS + MORE.format(name="same"))
    project.file("engine.py", "SECONDS = 0.05")
    project.file(".gitignore", "__pycache__\n")
    git(project.path, "init", "--quiet", "--initial-branch=main")
    git(project.path, "add", "--all")
    git(project.path, "commit", "--quiet", "--message", "main")
    git(project.path, "switch", "--quiet", "--create", "change")
    return project.path


def options(*more: str) -> list[str]:
    return [*ALONE, "--energy-rerun-baseline", *more]


def leftovers(repository: Path) -> str:
    return git(repository, "worktree", "list", "--porcelain").replace(str(repository), "HERE")


def test_a_regression_is_caught_without_any_stored_run(project: Project, repository: Path) -> None:
    """Beside a test whose code is the same, which passes, and one that the baseline does not have."""
    project.file("engine.py", "SECONDS = 0.06")
    project.tests(TESTS + MORE.format(name="same") + MORE.format(name="new"))
    git(repository, "commit", "--quiet", "--all", "--message", "slower")
    result = project.run(*options("--energy-baseline=main", "--junitxml=junit.xml"))
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.re_match_lines(
        [
            r"energy: \[1/4\] main@\w+",
            r"energy: \[2/4\] this work tree",
            r"energy: \[3/4\] this work tree",
            r"energy: \[4/4\] main@\w+",
            r"REGRESSED \+.* % \(limit 5 %\): test_work takes .* m?J/token; main@\w+ took .* \(2 runs\)\.",
            r"no baseline: test_new: .*its commit has no such test.*",
        ]
    )
    assert 'message="REGRESSED' in (repository / "junit.xml").read_text().replace("Failed: ", "")
    assert leftovers(repository).count("worktree") == 1
    assert not (repository / ".git" / "tokenpower").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "*--energy-rerun-baseline needs one git ref: --energy-baseline=REF*"),
        (("--energy-baseline=nowhere",), "*git knows no 'nowhere'*"),
        (("--energy-baseline=main", "-n2"), "*one process at a time: leave -n away*"),
    ],
)
def test_mistakes_end_the_run_with_the_remedy(
    project: Project, repository: Path, more: tuple[str, ...], message: str
) -> None:
    result = project.run(*options(*more))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (result.stderr if more[:1] != ("--energy-baseline=nowhere",) else result.stdout).fnmatch_lines([message])


def test_a_baseline_that_cannot_run_shows_its_output(project: Project, repository: Path) -> None:
    project.file("engine.py", "raise RuntimeError('broken on main')")
    git(repository, "commit", "--quiet", "--all", "--message", "broken")
    git(repository, "branch", "--force", "main", "change")
    project.file("engine.py", "SECONDS = 0.05")
    git(repository, "commit", "--quiet", "--all", "--message", "mended")
    result = project.run(*options("--energy-baseline=main"))
    result.stdout.fnmatch_lines(["*the baseline's run in * measured nothing*", "*broken on main*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_an_interrupt_leaves_nothing_behind(repository: Path) -> None:
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "a change")
    command = [sys.executable, "-m", "pytest", *options("--energy-baseline=main")]
    with subprocess.Popen(
        command,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores the interrupt, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as run:
        assert run.stdout is not None
        lines = []
        for line in iter(run.stdout.readline, ""):
            lines.append(line)
            if "[1/4]" in line:
                break
        assert "[1/4]" in lines[-1], lines
        time.sleep(0.5)
        os.killpg(run.pid, signal.SIGINT)
        run.stdout.read()
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert leftovers(repository).count("worktree") == 1


def test_a_child_run_repeats_the_command_line_without_what_belongs_to_the_whole() -> None:
    given = "tests/a.py -k x --energy-baseline main --energy-rerun-baseline --benchmark-json=j.json --debug=d.log -n 4"
    given += " --energy-source=model -q"
    assert child_arguments(given.split()) == ["tests/a.py", "-k", "x", "--energy-source=model", "-q"]


def test_absolute_paths_point_into_the_other_work_tree() -> None:
    top, other = Path("/a/repo"), Path("/b/tree")
    assert moved("/a/repo/tests/t.py::test_x[1]", top, other) == "/b/tree/tests/t.py::test_x[1]"
    assert moved("/elsewhere/t.py", top, other) == "/elsewhere/t.py"
    assert moved("-q", top, other) == "-q"


DYNAMIC = """
from engine import SECONDS

{mark}
def test_dynamic(request):
    request.getfixturevalue("energy")(generate, SECONDS)
"""


def test_a_test_that_asks_for_the_fixture_in_its_body_is_judged(project: Project, repository: Path) -> None:
    project.file("engine.py", "SECONDS = 0.1")
    project.tests(DYNAMIC.format(mark="@pytest.mark.power_budget(min_rounds=3, max_rounds=3)"))
    git(repository, "commit", "--quiet", "--all", "--message", "slower")
    git(repository, "branch", "--force", "main", "change")
    project.file("engine.py", "SECONDS = 0.2")
    git(repository, "commit", "--quiet", "--all", "--message", "slower still")
    result = project.run(*options("--energy-baseline=main"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["REGRESSED +* (limit 3 %): test_dynamic takes *"])


def test_one_that_nothing_announces_is_said_not_to_be_compared(project: Project, repository: Path) -> None:
    project.tests(DYNAMIC.format(mark=""))
    git(repository, "commit", "--quiet", "--all", "--message", "dynamic")
    project.ini("energy_missing_baseline = fail")
    result = project.run(*options("--energy-baseline=main"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["NO BASELINE: test_dynamic: *did not see beforehand that this test measures*"]
    )


def test_a_baseline_that_imports_the_candidates_code_is_refused(
    project: Project,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """An import hook that comes before the import path, as some editable installs have it."""
    hook = tmp_path_factory.mktemp("hook")
    (hook / "engine_hook.py").write_text(
        "import importlib.util, sys\n"
        "class Hook:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        file = {str(repository / 'engine.py')!r}\n"
        "        return importlib.util.spec_from_file_location(name, file) if name == 'engine' else None\n"
        "sys.meta_path.insert(0, Hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.syspath_prepend(str(hook))
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "a change")
    before = list(sys.meta_path)
    try:
        result = project.run(*options("--energy-baseline=main", "-p", "engine_hook"))
    finally:
        sys.meta_path[:] = before
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [f"*did not measure the code of its own commit: it imported engine ({repository}*"]
    )
    assert leftovers(repository).count("worktree") == 1


def test_code_beside_the_tests_in_a_monorepo_is_the_baselines(
    project: Project, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is on the import path by its folder, as a path file of an editable install puts it there."""
    git(repository, "mv", "-k", "engine.py", "nowhere.py")
    project.file("packages/app/src/engine.py", "SECONDS = 0.05")
    git(repository, "rm", "--quiet", "--cached", "-r", ".")
    (repository / "nowhere.py").unlink(missing_ok=True)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "a package")
    git(repository, "branch", "--force", "main", "change")
    project.file("packages/app/src/engine.py", "SECONDS = 0.1")
    git(repository, "commit", "--quiet", "--all", "--message", "slower")
    monkeypatch.syspath_prepend(str(repository / "packages/app/src"))
    result = project.run(*options("--energy-baseline=main", "-k", "work"))
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"REGRESSED \+.*: test_work takes .*"])
    path = repository / ".tokenpower/accepted/x.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        'test = "test_energy.py::test_work"\nup_to = "150%"\nreason = "longer"\nexpires = 9999-01-01\n'
    )
    result = project.run(*options("--energy-baseline=main", "-k", "work"))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*Accepted: up to 150 % until 9999-01-01 (longer; *"])
