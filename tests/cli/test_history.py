"""`tokenpower history`: the right runs, the steps and their commits, a plot that fits."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.reporting.plot import HEIGHT, WIDTH, Point, render
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels
from tests.support.repositories import KEY, TEST, Git, run


def test_a_step_is_found_and_its_commit_named(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 6 + [1.05] * 5)
    ended = tokenpower("history", "test_chat")
    assert (ended.code, ended.err) == (0, "")
    assert "11 runs of 11 commits on main" in ended.out
    found = re.search(r"^a  (\S+) % \[", ended.out, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(5, abs=0.4)
    assert f"   {commits[6][:7]} change 6\n" in ended.out
    assert "\nb  " not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_a_step_between_measured_commits_names_all_it_may_be(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 5)
    unmeasured = [git.commit(f"unmeasured {number}") for number in range(5)]
    last = stored_levels(git, store, [0.9] * 4, first=10)
    out = tokenpower("history", "test_chat").out
    assert f"one of 6 commits, {unmeasured[0][:7]} to {last[0][:7]}:" in out
    assert f"{unmeasured[0][:7]} unmeasured 0" in out
    assert "and 3 more; measure one in between" in out


def test_json_holds_what_was_stored(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0] * 5 + [1.1] * 5)
    told = json.loads(tokenpower("history", TEST, "--json").out)
    assert (told["test"], told["line"]) == (TEST, "main")
    (series,) = told["series"]
    assert [each["commit"] for each in series["runs"]] == commits
    for number, each in enumerate(series["runs"]):
        low, high = each["interval"]
        assert low < each["joules_per_token"] < high
        assert each["joules_per_token"] == pytest.approx(100 / 256 * (1 if number < 5 else 1.1), rel=0.01)
    (change,) = series["changes"]
    assert change["commits"] == [commits[5]]
    assert change["interval"][0] < 0.1 < change["interval"][1]
    assert series["runs"][4]["level"] < series["runs"][5]["level"] == series["runs"][9]["level"]


def test_only_clean_runs_of_the_line_count(git: Git, store: Store, tokenpower: Command) -> None:
    commits = stored_levels(git, store, [1.0, 1.0])
    store.write(run(50, at_level(), commit=commits[1], dirty=True))
    git("switch", "--quiet", "--create", "topic")
    store.write(run(60, at_level(), commit=git.commit("topic")))
    assert len(json.loads(tokenpower("history", TEST, "--json").out)["series"][0]["runs"]) == 3
    on_main = json.loads(tokenpower("history", TEST, "--json", "--ref=main").out)
    assert [each["commit"] for each in on_main["series"][0]["runs"]] == commits
    newest = json.loads(tokenpower("history", TEST, "--json", "--runs=1").out)
    assert [each["commit"] for each in newest["series"][0]["runs"]] == [git.head]


def test_outside_git_runs_follow_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenpower: Command
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    store = Store(outside / ".tokenpower")
    for number in (3, 1, 2):
        store.write(run(number, at_level(seed=number)))
    told = json.loads(tokenpower("history", TEST, "--json").out)
    assert told["line"] == "by time"
    assert [each["id"][:8] for each in told["series"][0]["runs"]] == ["00000001", "00000002", "00000003"]
    assert "3 runs, 2025-11-22 to 2025-11-22" in tokenpower("history", TEST).out
    assert "needs git history" in tokenpower("history", TEST, "--ref=main").err


def test_another_machine_is_another_series(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 4)
    other = msgspec.structs.replace(at_level(2.0), key=KEY | {"gpu.name": "NVIDIA A100"})
    store.write(run(30, other, commit=git.head))
    told = json.loads(tokenpower("history", TEST, "--json").out)
    assert [series["key"]["gpu.name"] for series in told["series"]] == ["NVIDIA A100", "NVIDIA H100"]
    assert all(not series["changes"] for series in told["series"])
    out = tokenpower("history", TEST).out
    assert "  GPU model: NVIDIA A100" in out


def test_invalid_measurements_are_counted_not_drawn(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    store.write(run(30, at_level(9.0, comparable=False), commit=git.head))
    out = tokenpower("history", TEST).out
    assert "1 invalid measurement left out." in out
    assert "3 runs of 3 commits" in out
    # One run apart from the others is no step yet, and no reason to say that nothing is to be seen.
    assert "No change of 0.5 % or more that 2 runs on both sides tell from the noise." in out


def test_a_regression_shows_whether_it_is_accepted(git: Git, store: Store, tokenpower: Command) -> None:
    (commit,) = stored_levels(git, store, [1.0])
    worse = git.commit("worse")
    store.write(run(5, at_level(1.1, verdicts=regressed(f"main@{commit[:7]}")), commit=worse))
    assert "regressed, not accepted" in tokenpower("history", TEST).out
    assert tokenpower("accept", TEST, "--up-to=12%", "--since", worse, "--reason=needed").code == 0
    assert "regressed, accepted" in tokenpower("history", TEST).out


def test_a_test_is_named_by_a_part_of_it(git: Git, store: Store, tokenpower: Command) -> None:
    store.write(run(1, at_level(), at_level(test=OTHER), commit=git.commit("one")))
    assert OTHER in tokenpower("history", "summary").out
    ambiguous = tokenpower("history", "test_chat.py")
    assert (ambiguous.code, ambiguous.out) == (4, "")
    assert "fits 2 tests; say which:" in ambiguous.err
    assert f"\n  {TEST}\n  {OTHER}" in ambiguous.err
    unknown = tokenpower("history", "test_summry")
    assert unknown.code == 4
    assert OTHER in unknown.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["x"], "no run is stored in .*--energy-autosave"),
        (["x", "--storage=missing"], "--storage=missing: .* is no folder"),
        (["x", "--runs=0"], "--runs=0: must be at least 1"),
        (["x", "--ref=mian"], "no run is stored"),
    ],
)
def test_mistakes(git: Git, tokenpower: Command, arguments: list[str], complaint: str) -> None:
    git.commit("one")
    ended = tokenpower("history", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(f"tokenpower history: {complaint}", ended.err)
    assert ended.err.count("\n") == 1


def test_nothing_on_this_line(git: Git, store: Store, tokenpower: Command) -> None:
    git.commit("one")
    store.write(run(1, commit="a" * 40))
    ended = tokenpower("history", TEST)
    assert ended.code == 4
    assert "none of the 1 runs" in ended.err
    assert "--ref=REF" in ended.err


def test_a_broken_file_is_told(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    broken = store.entries()[0].path
    broken.write_bytes(b"")
    ended = tokenpower("history", TEST)
    assert ended.code == 0
    assert "2 runs of" in ended.out
    assert f"1 stored file skipped, the first: {broken}" in ended.out


def test_the_store_may_be_named_by_its_runs(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 2)
    for path in (store.path, store.folder):
        assert tokenpower("history", TEST, f"--storage={os.fspath(path)}").code == 0


@pytest.mark.parametrize("count", [1, 2, 5, 69, 70, 500])
def test_the_plot_fits_whatever_is_drawn(count: int) -> None:
    points = [Point(v := 1 + 0.01 * math.sin(at), v - 0.001, v + 0.001, 1.0) for at in range(count)]
    lines = render(points, [count // 2, count - 1], "1234567", "89abcde")
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) == HEIGHT + 3


def test_the_plot_puts_high_above_low() -> None:
    values = [1.0, 2.0, 3.0, 2.0]
    lines = render([Point(value, value, value, 2.0) for value in values])
    rows = [
        next(y for y, line in enumerate(lines) if line[11 + 3 * at : 12 + 3 * at] == "●") for at in range(4)
    ]
    assert rows[0] == HEIGHT - 1
    assert rows[2] == 0
    assert rows[1] == rows[3] == HEIGHT // 2
    assert lines[0].startswith("        3 ┤")
    assert lines[HEIGHT - 1].startswith("        1 ┤")


def test_noise_does_not_fill_the_plot() -> None:
    lines = render([Point(value, value, value, 1.0) for value in (1.0, 1.0001, 0.9999)])
    assert {y for y, line in enumerate(lines) if "●" in line} == {HEIGHT // 2}


def test_steps_are_marked_below_their_points() -> None:
    lines = render([Point(1.0, 1.0, 1.0, 1.0)] * 4, [1, 3])
    assert lines[-1][11:] == "   a     b"
    assert lines[-2][11:] == "───┴─────┴"
