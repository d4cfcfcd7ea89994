"""`tokenpower report`: every format from stored runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_tokenpower.reporting.formats import FORMATS
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels
from tests.support.repositories import TEST, Git, run


def carried(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_stored_run_in_each_format(git: Git, store: Store, tokenpower: Command, chosen: str) -> None:
    store.write(run(3, at_level(verdicts=regressed("main@1234567")), commit=git.commit("a")))
    ended = tokenpower("report", "HEAD", "--format", chosen)
    assert (ended.code, ended.err) == (0, "")
    assert "test_chat[bf16]" in ended.out


def test_the_suffix_of_the_output_tells_the_format(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(3, at_level(), commit=git.commit("a")))
    assert tokenpower("report", "-o", "out.html").code == 0
    assert Path("out.html").read_text().startswith("<!doctype html>")
    ended = tokenpower("report", "-o", "out.pdf")
    assert (ended.code, ended.err) == (
        4,
        "tokenpower report: --output=out.pdf: its suffix tells no format: add --format\n",
    )
    assert tokenpower("report").out.startswith("### Energy per token: 1 measured")


def test_the_page_shows_the_history_with_its_step_and_this_run(
    git: Git, store: Store, tokenpower: Command
) -> None:
    commits = stored_levels(git, store, [1.0] * 6 + [1.1] * 5)
    ended = tokenpower("report", "HEAD", "--format", "html")
    [test] = carried(ended.out)["tests"]
    points = test["history"]["points"]
    assert [point[0] for point in points] == [commit[:7] for commit in commits]
    assert points[-1][7] == "this run"
    [[at, said]] = test["history"]["steps"]
    assert at == 6
    assert said.startswith("+10.")
    assert f"by {commits[6][:7]}" in said


def test_several_runs_make_one_report(git: Git, store: Store, tokenpower: Command) -> None:
    commit = git.commit("a")
    store.write(run(3, at_level(), commit=commit, name="one"))
    store.write(run(4, at_level(test=OTHER), commit=commit, name="two"))
    ended = tokenpower("report", "one", "two", "one")
    assert ended.out.startswith("### Energy per token: 2 measured")
    ended = tokenpower("report", "one", "two", "--format", "bencher")
    assert sorted(name.partition(" @")[0] for name in json.loads(ended.out)) == sorted([TEST, OTHER])


def test_cost_and_carbon_by_factors_of_the_command_line(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(3, at_level(), commit=git.commit("a")))
    ended = tokenpower("report", "--price=0.3", "--currency=EUR", "--carbon-intensity=fra", "--pue=1.1")
    assert "France 2023" in ended.out
    ended = tokenpower("report", "--price=0.3")
    assert (ended.code, ended.err) == (
        4,
        "tokenpower report: energy_price is given without energy_currency: a price needs both\n",
    )


def test_an_annotation_is_printed_as_the_command_that_it_is(
    git: Git, store: Store, tokenpower: Command
) -> None:
    store.write(run(3, at_level(verdicts=regressed("main@1234567")), commit=git.commit("a")))
    ended = tokenpower("report", "--format=annotation")
    assert ended.out.startswith("::error title=Energy per token%3A 1 REGRESSED::REGRESSED: test_chat[bf16]")


def test_a_recording_of_another_run_is_refused(
    git: Git, store: Store, tokenpower: Command, tmp_path: Path
) -> None:
    store.write(run(3, at_level(), commit=git.commit("a")))
    recording = tmp_path / "other.jsonl"
    recording.write_text('{"type":"recording","version":1}\n')
    ended = tokenpower("report", "--format=html", f"--recording={recording}")
    assert ended.code == 4
    assert "holds the rounds of none of these runs" in ended.err


def test_a_verdict_of_a_later_version_is_refused(git: Git, store: Store, tokenpower: Command) -> None:
    later = msgspec.structs.replace(regressed("main@1234567")[0], kind="probably fine")
    store.write(run(3, at_level(verdicts=(later,)), commit=git.commit("a")))
    ended = tokenpower("report")
    assert ended.code == 4
    assert "'probably fine' is no verdict that this pytest-tokenpower knows" in ended.err


def test_the_schema_needs_no_run(git: Git, tokenpower: Command) -> None:
    ended = tokenpower("report", "--format=schema")
    assert json.loads(ended.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_title_is_in_the_heading_and_marks_the_comment(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(3, at_level(), commit=git.commit("a")))
    assert tokenpower("report", "--title=gpu-1").out.startswith(
        "### Energy per token: 1 measured (`gpu-1`)\n"
    )
    ended = tokenpower("report", "--format=comment", "--title=gpu-1")
    assert ended.out.startswith("<!-- pytest-tokenpower: gpu-1 -->\n")
    ended = tokenpower("report", "--title=--> @all")
    assert (ended.code, ended.err) == (
        4, "tokenpower report: --title=--> @all: must be up to 100 letters, digits, '.', '_' and '-'\n",
    )  # fmt: skip
