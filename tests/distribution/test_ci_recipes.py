"""The recipes of docs/ci.md for other CI services: what they say is read, and their shell lines run in order."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="PyYAML reads the recipes")

import yaml

from tests.support.repositories import Git, plain_git
from tests.support.workflows import DEARER, ROOT, World, write_python3

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "ci.md").read_text()

SERVICES = ("GitLab CI", "Buildkite", "Jenkins")


def blocks(service: str, language: str) -> str:
    """Return a service's code block in a language."""
    section = PAGE.split(f"\n## {service}\n")[1].split("\n## ")[0]
    [block] = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return str(block)


def gitlab() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(blocks("GitLab CI", "yaml"))
    return read


@dataclass
class Agent:
    """A CI service's agent: each job has a workspace as the service makes it."""

    service: str
    world: World
    numbers: count[int]

    def run(
        self, branch: str, target: str = "", *clone: str, more: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run the job of a branch, or of its merge into ``target``; returns how it ended."""
        number = str(next(self.numbers))
        home = self.world.home / f"job{number}"
        (home / "bin").mkdir(parents=True)
        write_python3(home / "bin")
        workspace = Git(self.world.origin).clone(home / "workspace", *clone)
        workspace("checkout", "--quiet", "--detach", f"origin/{branch}")
        for local in workspace("for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines():
            workspace("branch", "--quiet", "-D", local)
        script = home / "script.sh"
        script.write_text(f"{self.script(target)}\n{more}\n")
        return subprocess.run(
            ["bash", os.fspath(script)],
            cwd=workspace.path,
            env={
                **os.environ,
                "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": str(home),
                "CI": "true",
                **self.variables(branch, target, number),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def script(self, target: str) -> str:
        """Return the lines of the job, as the service's shell runs them."""
        if self.service == "Buildkite":
            return blocks("Buildkite", "bash")
        if self.service == "Jenkins":
            [script] = re.findall(r"sh '''(.*?)'''", blocks("Jenkins", "groovy"), re.DOTALL)
            return str(script)
        read = gitlab()
        job = read["energy-gate" if target else "energy-baseline"]
        assert job["extends"] == ".energy"
        return "\n".join(["set -eo pipefail", *read[".energy"]["before_script"], *job["script"]])

    def variables(self, branch: str, target: str, number: str) -> dict[str, str]:
        if self.service == "Buildkite":
            return {
                "BUILDKITE": "true",
                "BUILDKITE_JOB_ID": number,
                "BUILDKITE_BRANCH": branch,
                "BUILDKITE_PULL_REQUEST": "1" if target else "false",
                "BUILDKITE_PULL_REQUEST_BASE_BRANCH": target,
            }
        if self.service == "Jenkins":
            change = {"CHANGE_ID": "1", "CHANGE_TARGET": target, "BRANCH_NAME": "PR-1"}
            return {
                "JENKINS_URL": "https://ci.example.org",
                "BUILD_TAG": number,
                **(change if target else {"BRANCH_NAME": branch}),
            }
        request = {
            "CI_PIPELINE_SOURCE": "merge_request_event",
            "CI_MERGE_REQUEST_IID": "1",
            "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": target,
        }
        return {
            "GITLAB_CI": "true",
            "CI_JOB_ID": number,
            "CI_SERVER_HOST": "gitlab.example.org",
            "CI_PROJECT_PATH": "me/app",
            "STORE_TOKEN": "the-token",
            # The address that the recipe pushes to is the server's.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self.world.origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://energy:the-token@gitlab.example.org/me/app.git",
            **(request if target else {"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": branch}),
        }


@pytest.fixture(params=SERVICES)
def agent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return an agent of a service, and a repository whose main has run once on it."""
    plain_git(monkeypatch, tmp_path)
    for name in [
        name for name in os.environ if name.startswith(("GITHUB_", "GITLAB_", "BUILDKITE", "JENKINS_"))
    ]:
        monkeypatch.delenv(name)
    world = World.made(tmp_path)
    agent = Agent(request.param, world, count(1))
    first = agent.run("main")
    assert (first.returncode, world.pushed) == (0, 1), first.stdout
    assert "no baseline" in first.stdout
    return agent


def test_a_service_gates_changes_and_keeps_what_main_was_measured_at(agent: Agent) -> None:
    world = agent.world
    world.change("unchanged")
    world.change("dearer", **DEARER)
    world.dev("push", "--quiet", "origin", "unchanged", "dearer")

    same = agent.run("unchanged", "main")
    assert (same.returncode, world.pushed) == (0, 1), same.stdout
    assert re.search(r"baseline \S*main@", same.stdout)

    dearer = agent.run("dearer", "main")
    assert (dearer.returncode, world.pushed) == (1, 1), dearer.stdout
    assert "REGRESSED" in dearer.stdout

    cut = agent.run("dearer", "main", "--depth=1", "--no-single-branch")
    assert (cut.returncode, world.pushed) == (4, 1), cut.stdout
    assert "shallow clone" in cut.stdout

    poison = agent.run("unchanged", "main", more='tokenpower push --storage "${STORE:-$folder/store}"')
    assert poison.returncode == 4, poison.stdout
    assert "nothing is published" in poison.stdout

    world.dev("push", "--quiet", "origin", "dearer:main")
    merged = agent.run("main")
    assert (merged.returncode, world.pushed) == (1, 2), merged.stdout
    assert "the-token" not in merged.stdout


def test_gitlab_starts_each_job_where_it_belongs() -> None:
    read = gitlab()
    assert read[".energy"]["variables"] == {"GIT_DEPTH": "0", "GIT_STRATEGY": "clone"}
    [gate], [baseline] = (read[job]["rules"] for job in ("energy-gate", "energy-baseline"))
    assert gate == {"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'}
    assert '$CI_PIPELINE_SOURCE == "push"' in baseline["if"]
    assert "STORE_TOKEN" not in str(read["energy-gate"])


def test_buildkite_runs_the_script_one_at_a_time() -> None:
    [step] = yaml.safe_load(blocks("Buildkite", "yaml"))["steps"]
    assert (step["command"], step["concurrency"]) == (".buildkite/energy.sh", 1)


def test_the_jenkinsfile_is_in_balance() -> None:
    text = re.sub(r"'''.*?'''|'[^'\n]*'", "''", blocks("Jenkins", "groovy"), flags=re.DOTALL)
    depth = 0
    for sign in text:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert text.split()[:2] == ["pipeline", "{"]
