"""examples/github/energy-comment.yml: its steps post a comment of each job, once, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="PyYAML reads the workflows")

from pytest_tokenpower.core.records import encode_run
from tests.support.github import BOT, COMMENT_JOB, GitHub, posted, served
from tests.support.reports import hostile, many, ordinary
from tests.support.workflows import load

pytestmark = pytest.mark.slow

MARKER = "<!-- pytest-tokenpower: energy-gate -->"


ORDINARY = encode_run(ordinary().runs[0])


@pytest.fixture
def github() -> Iterator[GitHub]:
    with served() as found:
        yield found


@pytest.mark.parametrize("gh", ["gh", "stand-in"])
def test_a_later_run_replaces_the_comment_of_the_earlier_one(github: GitHub, tmp_path: Path, gh: str) -> None:
    github.real = gh == "gh"
    github.say("Nice.", "a-person")
    github.say(f"{MARKER}\nnot ours", "a-person")
    github.say("a comment of another workflow", BOT)
    posted(github, tmp_path, {"energy-gate": ORDINARY})
    assert [len(github.bodies()), github.calls] == [2, ["POST"]]
    first = github.bodies()[1]
    assert first.startswith(f"{MARKER}\n### Energy per token: 1 INVALID, 1 REGRESSED")
    posted(github, tmp_path, {"energy-gate": encode_run(many(3).runs[0])})
    assert github.calls == ["POST", "PATCH"]
    assert github.bodies()[0] == "a comment of another workflow"
    assert github.bodies()[1].startswith(
        f"{MARKER}\n### Energy per token: 1 REGRESSED, 2 passed (`energy-gate`)"
    )
    assert github.bodies("a-person") == ["Nice.", f"{MARKER}\nnot ours"]


def test_each_job_has_a_comment_of_its_own(github: GitHub, tmp_path: Path) -> None:
    records = {"energy-gate-h100": ORDINARY, "energy-gate-h100.2": ORDINARY}
    posted(github, tmp_path, records)
    posted(github, tmp_path, records)
    assert github.calls == ["POST", "POST", "PATCH", "PATCH"]
    assert {body.splitlines()[0] for body in github.bodies()} == {
        f"<!-- pytest-tokenpower: {job} -->" for job in records
    }


def test_a_forks_record_speaks_in_code_alone_and_its_artifacts_names_not_at_all(
    github: GitHub, tmp_path: Path
) -> None:
    posted(
        github,
        tmp_path,
        {"energy-gate": encode_run(hostile().runs[0]), "energy-$(touch x) @all --> |": ORDINARY},
    )
    [body] = github.bodies()
    assert body.count("<!--") == 1 + body.count("[text](https://evil.example)")
    # tests/reporting/test_markdown.py holds that what is between the ticks stays there.
    assert "`" in body.partition("@everyone")[0]


def test_no_more_than_ten_comments_come_of_one_run(github: GitHub, tmp_path: Path) -> None:
    said = posted(github, tmp_path, {f"energy-{at}": ORDINARY for at in range(12)})
    assert len(github.bodies()) == 10
    assert "More than 10 jobs have left a record" in said


def test_a_long_comment_is_cut_and_says_so(github: GitHub, tmp_path: Path) -> None:
    posted(github, tmp_path, {"energy-gate": encode_run(many(1000).runs[0])})
    [body] = github.bodies()
    assert len(body) <= 65_536
    assert "more, none of them graver than these: this text may be no longer." in body


@pytest.mark.parametrize(
    ("records", "event", "expected"),
    [
        ({}, {}, "The gate has left no record: see its job."),
        ({"energy-gate": ORDINARY}, {"head_sha": "d" * 40}, "No open pull request is at ddd"),
        ({"energy-gate": ORDINARY}, {"head_repository": None}, "No open pull request is at ccc"),
    ],
    ids=["no record", "another push", "the fork is gone"],
)
def test_nothing_is_posted_where_there_is_nothing_to_say_or_nobody_to_say_it_to(
    github: GitHub, tmp_path: Path, records: dict[str, bytes], event: dict[str, Any], expected: str
) -> None:
    assert expected in posted(github, tmp_path, records, **event)
    assert github.comments == []


def test_the_artifacts_that_are_read_are_those_that_the_action_uploads() -> None:
    [download] = [step for step in COMMENT_JOB["steps"] if "download-artifact" in step.get("uses", "")]
    # Without merging, a single artifact would lie in the folder itself, and several in folders of their names.
    assert (download["with"]["pattern"], download["with"]["merge-multiple"]) == ("energy-*", "true")
    action = load("action.yml")
    assert action["inputs"]["artifact"]["default"].startswith("energy-")
    [upload] = [step["with"] for step in action["runs"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert Path(upload["path"]).name == f"{upload['name']}.json"
