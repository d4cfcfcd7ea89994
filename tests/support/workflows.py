"""GitHub workflows run here: their expressions, jobs and steps, on a runner that is a folder; and what they work on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tests.support.repositories import Git

ROOT = Path(__file__).parents[2]

TOKEN = "the-token-of-the-job"

GATE = "examples/github/energy.yml"
REPOSITORY = "owner/app"

DEARER, CHEAPER = {"engine": "SECONDS = 1.0\n"}, {"engine": "SECONDS = 0.3\n"}

INI = """
[pytest]
addopts = -p no:cacheprovider -p no:hypothesispytest -p no:anyio -p no:pytest_cov
energy_source = simulated:virtual
"""

TESTS = """
import os

import pytest
from pytest_tokenpower import TokenCount
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

import engine

quick = pytest.mark.power_budget(min_rounds=4, max_rounds=4)


def generate():
    VIRTUAL_TIME.sleep(engine.SECONDS)
    return TokenCount(0, 1000)


@quick
def test_chat(energy):
    assert "TOKEN" not in str(dict(os.environ))
    energy(generate)
""".replace("TOKEN", TOKEN)

_TOKENS = re.compile(r"\s*(?:('(?:[^']|'')*')|([\w.*-]+)|(&&|\|\||==|!=|[!(),]))")

# Stands for python3 and for the tools that an installation would bring, from the environment of this very test.
_PYTHON3 = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
mkdir -p "$3/bin"
printf '#!/bin/sh\\nexit 0\\n' > "$3/bin/pip"
printf '#!/bin/sh\\nexec {python} -m pytest "$@"\\n' > "$3/bin/pytest"
printf '#!/bin/sh\\nexec {python} -m pytest_tokenpower "$@"\\n' > "$3/bin/tokenpower"
printf 'PATH=%s:$PATH\\n' "$3/bin" > "$3/bin/activate"
chmod +x "$3"/bin/*
"""


def write_python3(folder: Path) -> Path:
    """Write the stand-in for python3 into a folder."""
    stub = folder / "python3"
    stub.write_text(_PYTHON3.format(python=sys.executable))
    stub.chmod(0o755)
    return stub


def load(path: str) -> dict[str, Any]:
    """Return a workflow or action of this repository."""
    read: dict[str, Any] = yaml.load((ROOT / path).read_text(), Loader=yaml.BaseLoader)
    return read


def evaluate(expression: str, context: Mapping[str, Any]) -> Any:
    """Evaluate the part of GitHub's expressions that the workflows use; raises on anything else."""
    tokens = []
    at, expression = 0, expression.strip()
    while at < len(expression):
        match = _TOKENS.match(expression, at)
        assert match, f"cannot read {expression!r} from {expression[at:]!r} on"
        tokens.append(match.group().strip())
        at = match.end()
    functions: dict[str, Callable[..., Any]] = {
        "cancelled": lambda: False,
        "startsWith": lambda text, prefix: str(text).lower().startswith(str(prefix).lower()),
    }

    def take(*expected: str) -> str | None:
        return tokens.pop(0) if tokens and tokens[0] in expected else None

    def either() -> Any:
        value = both()
        while take("||"):
            other = both()
            value = value or other
        return value

    def both() -> Any:
        value = equal()
        while take("&&"):
            other = equal()
            value = value and other
        return value

    def equal() -> Any:
        value = single()
        if operator := take("==", "!="):
            same = str(value or "").lower() == str(single() or "").lower()
            return same == (operator == "==")
        return value

    def single() -> Any:
        if take("!"):
            return not single()
        if take("("):
            value = either()
            assert take(")"), expression
            return value
        word = tokens.pop(0)
        if word.startswith("'"):
            return word[1:-1].replace("''", "'")
        if take("("):
            arguments = []
            while not take(")"):
                arguments.append(either())
                take(",")
            return functions[word](*arguments)
        found: Any = context
        for part in word.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    result = either()
    assert not tokens, f"{expression!r} goes on with {tokens}"
    return result


def filled(text: str, context: Mapping[str, Any]) -> str:
    """Replace the ``${{ }}`` of a text."""

    def value(match: re.Match[str]) -> str:
        found = evaluate(match[1], context)
        return str(found).lower() if isinstance(found, bool) else str(found or "")

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def holds(condition: str | None, context: Mapping[str, Any], *, failed: bool) -> bool:
    """Whether an ``if`` lets a job or step run; without a status function it implies success()."""
    if condition is None:
        return not failed
    expression = condition.strip().removeprefix("${{").removesuffix("}}")
    return bool(evaluate(expression, context)) and (not failed or "cancelled()" in expression)


@dataclass
class JobRun:
    """What a job did."""

    name: str
    failed: bool = False
    output: str = ""
    summary: str = ""
    steps: list[str] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)


@dataclass
class Runner:
    """A self-hosted runner: its workspace stays from job to job, its temporary folder is emptied before each."""

    home: Path
    origin: Path
    environment: dict[str, str] = field(default_factory=dict)
    numbers: count[int] = field(default_factory=lambda: count(os.getpid() * 1000))

    @property
    def workspace(self) -> Path:
        return self.home / "work" / "app"

    def run(self, workflow: str, github: Mapping[str, Any], **checkout: str) -> dict[str, JobRun]:
        """Run the jobs that an event starts; ``checkout`` overrides what the steps say to actions/checkout."""
        done = {}
        for name, job in load(workflow)["jobs"].items():
            context = {"github": {**github, "job": name, "token": TOKEN, "server_url": "https://github.com"}}
            if holds(job.get("if"), context, failed=False):
                done[name] = self._job(name, job, context, checkout)
        return done

    def _job(
        self, name: str, job: Mapping[str, Any], context: dict[str, Any], checkout: Mapping[str, str]
    ) -> JobRun:
        temp = self.home / "temp"
        shutil.rmtree(temp, ignore_errors=True)
        (temp / "bin").mkdir(parents=True)
        write_python3(temp / "bin")
        github = context["github"]
        context["runner"] = {"temp": str(temp)}
        environment = {
            **os.environ,
            "PATH": f"{temp / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_NAME": github["event_name"],
            "GITHUB_REF": github["ref"],
            "GITHUB_REPOSITORY": github["repository"],
            "GITHUB_RUN_ID": str(next(self.numbers)),
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_JOB": name,
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(temp),
            **self.environment,
        }
        run = JobRun(name)
        self._steps(job["steps"], context, environment, run, checkout)
        return run

    def _steps(
        self,
        steps: list[dict[str, Any]],
        context: dict[str, Any],
        environment: dict[str, str],
        run: JobRun,
        checkout: Mapping[str, str],
    ) -> None:
        outcomes: dict[str, Any] = {}
        context = {**context, "steps": outcomes}
        for step in steps:
            outputs: dict[str, str] = {}
            if not holds(step.get("if"), context, failed=run.failed):
                outcomes[step.get("id", "")] = {"outcome": "skipped", "outputs": outputs}
                continue
            given = {key: filled(value, context) for key, value in step.get("with", {}).items()}
            uses = step.get("uses", "")
            code = 0
            if uses.startswith("actions/checkout@"):
                self._checkout(context["github"], {**given, **checkout})
            elif uses.startswith("actions/upload-artifact@"):
                if Path(given["path"]).exists():
                    run.artifacts[given["name"]] = Path(given["path"])
            elif uses.startswith("pytest-tokenpower/pytest-tokenpower@"):
                action = load("action.yml")
                assert given.keys() <= action["inputs"].keys()
                inputs = {
                    name: given.get(name, filled(declared["default"], context))
                    for name, declared in action["inputs"].items()
                }
                self._steps(
                    action["runs"]["steps"], {**context, "inputs": inputs}, environment, run, checkout
                )
            else:
                assert not uses, f"nothing here stands for {uses}"
                code, outputs = self._shell(step, context, environment, run)
            run.steps.append(f"{step.get('name', uses)}: {code}")
            run.failed = run.failed or code != 0
            outcomes[step.get("id", "")] = {"outcome": "failure" if code else "success", "outputs": outputs}

    def _shell(
        self, step: Mapping[str, Any], context: Mapping[str, Any], environment: dict[str, str], run: JobRun
    ) -> tuple[int, dict[str, str]]:
        temp = Path(environment["RUNNER_TEMP"])
        files = {
            name: temp / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")
        }
        for file in files.values():
            file.write_text("")
        script = temp / "step.sh"
        script.write_text(filled(step["run"], context))
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail"] if "shell" in step else ["bash", "-e"]
        done = subprocess.run(
            [*shell, str(script)],
            cwd=self.workspace,
            env={
                **environment,
                **{name: filled(value, context) for name, value in step.get("env", {}).items()},
                **{name: str(file) for name, file in files.items()},
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        run.output += done.stdout
        run.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        for folder in files["GITHUB_PATH"].read_text().splitlines():
            environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        return done.returncode, dict(line.split("=", 1) for line in lines)

    def _checkout(self, github: Mapping[str, Any], given: Mapping[str, str]) -> None:
        """Check out as actions/checkout does: a workspace that is there is cleaned, its git folder kept."""
        assert given["persist-credentials"] == "false"
        if not self.workspace.exists():
            git = Git.init(self.workspace)
            git("remote", "add", "origin", f"file://{self.origin}")
        git = Git(self.workspace)
        depth = given.get("fetch-depth", "1")
        into = (
            github["ref"]
            .replace("refs/heads/", "refs/remotes/origin/")
            .replace("refs/pull/", "refs/remotes/pull/")
        )
        everything = ["+refs/heads/*:refs/remotes/origin/*"] if depth == "0" else []
        options = ["--no-tags"] if depth == "0" else ["--no-tags", f"--depth={depth}"]
        git("fetch", "--quiet", *options, "origin", *everything, f"+{github['ref']}:{into}")
        git("clean", "-ffdx", "--quiet")
        git("checkout", "--quiet", "--force", "--detach", into)
        for branch in git("for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines():
            git("branch", "--quiet", "-D", branch)
        if github["ref"].startswith("refs/heads/"):
            git("checkout", "--quiet", "-B", github["ref"].removeprefix("refs/heads/"), into)


class World:
    """A repository on a server, a developer's clone of it, and runners."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.origin = home / "origin.git"
        self.dev = Git(home / "dev")
        self.runners = count(len(list(home.glob("runner*"))))

    @classmethod
    def made(cls, home: Path) -> World:
        """Return a first commit, and main one commit further."""
        world = cls(home)
        Git.init(home / "seed")
        Git(home / "seed")("init", "--bare", "--quiet", "--initial-branch=main", str(world.origin))
        Git.init(world.dev.path)
        world.dev("remote", "add", "origin", str(world.origin))
        world.dev.write("pytest.ini", INI + "pythonpath = .\n")
        world.dev.write("tests/energy/test_chat.py", TESTS)
        world.dev.commit("first", engine="SECONDS = 0.5\n")
        world.dev("tag", "first")
        world.dev.commit("second", other="")
        world.dev("push", "--quiet", "origin", "main", "first")
        return world

    def runner(self, **environment: str) -> Runner:
        return Runner(self.home / f"runner{next(self.runners)}", self.origin, environment)

    def push(self, runner: Runner, branch: str = "main", **checkout: str) -> JobRun:
        """Return what the push of a branch's newest commit starts."""
        self.dev("push", "--quiet", "origin", branch)
        return self.only("baseline", runner.run(GATE, self.event("push", f"refs/heads/{branch}"), **checkout))

    def pull_request(
        self, runner: Runner, base: str = "main", head: str = REPOSITORY, **checkout: str
    ) -> JobRun:
        """Return what a pull request of the branch that is checked out starts: HEAD there is the merge commit."""
        branch = self.dev("branch", "--show-current")
        self.dev("switch", "--quiet", "--detach", base)
        self.dev("merge", "--quiet", "--no-ff", "--message", "Merge", branch)
        self.dev("push", "--quiet", "--force", "origin", "HEAD:refs/pull/1/merge")
        self.dev("switch", "--quiet", branch)
        github = self.event("pull_request", "refs/pull/1/merge", base_ref=base)
        github["event"] = {"pull_request": {"number": "1", "head": {"repo": {"full_name": head}}}}
        job = "gate" if head == REPOSITORY else "fork"
        return self.only(job, runner.run(GATE, github, **checkout))

    def merge_group(self, runner: Runner) -> JobRun:
        """Return what a queue starts for the branch that is checked out."""
        ref = "refs/heads/gh-readonly-queue/main/pr-1"
        self.dev("push", "--quiet", "--force", "origin", f"HEAD:{ref}")
        github = self.event("merge_group", ref)
        github["event"] = {"merge_group": {"base_ref": "refs/heads/main"}}
        return self.only("gate", runner.run(GATE, github))

    def event(self, name: str, ref: str, **more: str) -> dict[str, Any]:
        ref_name = ref.removeprefix("refs/heads/").removeprefix("refs/")
        return {"event_name": name, "ref": ref, "ref_name": ref_name, "repository": REPOSITORY, **more}

    @staticmethod
    def only(name: str, done: dict[str, JobRun]) -> JobRun:
        assert done.keys() == {name}
        return done[name]

    def change(self, name: str = "change", base: str = "main", **files: str) -> None:
        self.dev("switch", "--quiet", "-c", name, base)
        self.dev.commit(name, **(files or {"other": f"# {name}\n"}))

    @property
    def pushed(self) -> int:
        """How many runs the store's branch on the server holds."""
        refs = self.dev("ls-remote", "origin", "refs/heads/tokenpower-store")
        if not refs:
            return 0
        listed = Git(self.origin)("ls-tree", "-r", "--name-only", "tokenpower-store", "runs/")
        return len(listed.splitlines())
