"""`tokenpower accept`: a rise is accepted in its pull request, by a file that is committed with it."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.committed import committed_file
from pytest_tokenpower.store.git import ACCEPTED_FOLDER, Repository
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import OTHER, at_level, regressed, stored_levels, verdict
from tests.support.repositories import KEY, TEST, Git, numbers, run
from tests.support.verdicts import judge_stored, text

LIMIT = 0.03


def repository(git: Git) -> Repository:
    found = Repository.discover(git.path)
    assert found is not None
    return found


def find(git: Git, store: Store, test: str = TEST) -> ComparableRuns:
    """Return what a change on top of HEAD would be compared with."""
    return Baseline.resolve("HEAD", store, repository(git), at_ref=True).find(test, KEY)


def gate(git: Git, store: Store, number: int, level: float, ref: str = "main") -> VerdictRecord:
    """Return what the gate does on HEAD: judge a run of it by the baseline, and store it with the verdict."""
    baseline = Baseline.resolve(ref, store, repository(git))
    measured = at_level(level, seed=number)
    stored = baseline.find(measured.test, measured.key)
    decided = judge_stored(measured, stored, LIMIT)
    store.write(run(number, msgspec.structs.replace(measured, verdicts=(decided,)), commit=git.head))
    return decided


def merge(git: Git, branch: str) -> str:
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--no-ff", "--no-edit", branch)
    return git.head


def accept(git: Git, tokenpower: Command, share: str, *more: str, test: str = TEST) -> str:
    """Return the command, and the commit of what it wrote; what it said."""
    ended = tokenpower("accept", test, f"--up-to={share}", "--reason=fp16 KV cache", *more)
    assert (ended.code, ended.err) == (0, "")
    git("add", "--all")
    git("commit", "--quiet", "--message=accept")
    return ended.out


def test_a_change_is_accepted_in_its_pull_request_and_main_goes_on_from_there(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 4)
    git("switch", "--quiet", "--create", "change")
    git.commit("costs more", cache="fp16")
    refused = gate(git, store, 10, 1.07)
    assert refused.kind == "regressed"
    assert re.search(rf"Intended\? tokenpower accept '{re.escape(TEST)}' --up-to (9|1[0-2])% ", text(refused))
    told = accept(git, tokenpower, "12%")
    assert "nothing holds yet for others" in told
    accepted = gate(git, store, 11, 1.07)
    assert (accepted.kind, accepted.threshold) == ("passed", 0.12)
    assert accepted.accepted
    assert "Accepted: up to 12 %" in text(accepted)
    assert "fp16 KV cache" in text(accepted)
    # It is bound to the size of the change.
    over = gate(git, store, 12, 1.2)
    assert over.kind == "regressed"
    assert "more than was accepted" in text(over)
    merged = merge(git, "change")
    on_main = gate(git, store, 13, 1.07)
    assert (on_main.kind, on_main.threshold) == ("passed", 0.12)
    # From the first run at the merge on, the level begins there and the usual limit holds.
    git.commit("next")
    following = gate(git, store, 14, 1.07)
    assert (following.kind, following.threshold) == ("passed", LIMIT)
    assert following.baseline_runs == (run(13).id,)
    git.commit("another rise")
    assert gate(git, store, 15, 1.14).kind == "regressed"
    assert numbers(find(git, store).run_ids) == [14, 13]
    baseline = Baseline.resolve("main", store, repository(git), at_ref=True)
    assert baseline.accepted is not None
    assert baseline.accepted.steps(TEST) == (merged,)


@pytest.mark.parametrize("how", ["squash", "rebase"])
def test_it_follows_the_file_however_it_comes_to_main(
    git: Git, store: Store, tokenpower: Command, how: str
) -> None:
    stored_levels(git, store, [1.0] * 3)
    git("switch", "--quiet", "--create", "change")
    git.commit("costs more", cache="fp16")
    accept(git, tokenpower, "12%")
    git("switch", "--quiet", "main")
    git.commit("meanwhile", other="x")
    if how == "squash":
        git("merge", "--quiet", "--squash", "change")
        git("commit", "--quiet", "--message=squashed")
    else:
        git("switch", "--quiet", "change")
        git("rebase", "--quiet", "main")
        git("switch", "--quiet", "main")
        git("merge", "--quiet", "--ff-only", "change")
    assert gate(git, store, 10, 1.07).kind == "passed"
    assert numbers(find(git, store).run_ids) == [10]


def test_other_tests_and_other_branches_have_nothing_of_it(
    git: Git, store: Store, tokenpower: Command
) -> None:
    for number in range(3):
        git.commit(f"change {number}")
        store.write(run(number, at_level(seed=number), at_level(test=OTHER, seed=number), commit=git.head))
    git("switch", "--quiet", "--create", "change")
    accept(git, tokenpower, "12%")
    baseline = Baseline.resolve("main", store, repository(git))
    assert baseline.find(TEST, KEY).acceptance is not None
    assert baseline.find(OTHER, KEY).acceptance is None
    git("switch", "--quiet", "--create", "aside", "main")
    git.commit("aside")
    assert Baseline.resolve("main", store, repository(git)).find(TEST, KEY).acceptance is None


def test_one_acceptance_may_stand_for_all_parameters(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    git("switch", "--quiet", "--create", "change")
    accept(git, tokenpower, "12%", test=TEST.partition("[")[0])
    assert gate(git, store, 10, 1.07).kind == "passed"


def test_it_ends_with_its_day(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    git("switch", "--quiet", "--create", "change")
    accept(git, tokenpower, "8%", "--days=3")
    rises = Baseline.resolve("main", store, repository(git)).rises
    assert rises is not None
    today = date.today()
    assert rises.allowance(None, TEST, today=today + timedelta(days=1)) is not None
    assert rises.allowance(None, TEST, today=today + timedelta(days=10)) is None


@pytest.mark.parametrize("name", ["by hand.toml", "größer.toml", 'a"b.toml'])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_it_ends_with_its_first_run_whatever_its_files_name_and_line_ends(
    git: Git, store: Store, tokenpower: Command, name: str, line_end: str
) -> None:
    stored_levels(git, store, [1.0] * 5)
    accept(git, tokenpower, "25%")
    written = git.path / committed_file(ACCEPTED_FOLDER, TEST)
    text = written.read_text()
    written.unlink()
    (written.parent / name).write_bytes(text.replace("\n", line_end).encode())
    git("add", "--all")
    git("commit", "--quiet", "--amend", "--no-edit")
    assert gate(git, store, 5, 1.2).accepted
    git.commit("20 % more once more")
    assert gate(git, store, 6, 1.44).kind == "regressed"


def test_a_change_that_was_accepted_and_reverted_does_not_put_the_gate_to_sleep(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 5)
    accept(git, tokenpower, "10%")
    assert gate(git, store, 5, 1.08).accepted
    git.commit("reverted")
    assert gate(git, store, 6, 1.0).kind == "improved"
    git.commit("the revert reverted")
    assert gate(git, store, 7, 1.08).kind == "regressed"


def test_what_is_accepted_and_has_no_run_yet_leaves_the_baseline_its_runs(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 5)
    accept(git, tokenpower, "10%")
    git.commit("on top")
    assert len(find(git, store).runs) == 5


def test_accepted_once_more_is_a_new_level(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    accept(git, tokenpower, "12%")
    assert gate(git, store, 10, 1.07).kind == "passed"
    accept(git, tokenpower, "14%")
    again = gate(git, store, 11, 1.14)
    assert (again.kind, again.baseline_runs) == ("passed", (run(10).id,))
    assert numbers(find(git, store).run_ids) == [11]


def test_a_merged_regression_keeps_main_red_until_it_is_accepted_since(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 4)
    kinds = []
    for number, level in enumerate([1.06] * 5 + [1.3], 5):
        git.commit(f"merged {number}")
        kinds.append(gate(git, store, number, level))
    assert [one.kind for one in kinds] == ["regressed"] * 6
    assert "This is main itself: an acceptance is due" in text(kinds[0])
    worse = git("rev-parse", "HEAD~5")
    found = find(git, store)
    assert numbers(found.run_ids) == [3, 2, 1, 0]
    assert f"--since {worse[:10]}" in found.note
    assert "6 stored runs" in found.note
    told = accept(git, tokenpower, "8%", "--since", worse)
    assert "holds no run" not in told
    assert f"runs from {worse[:7]} on count" in told
    # The runs of that level count, nothing from before it, and not the one that rose by more.
    assert numbers(find(git, store).run_ids) == [9, 8, 7, 6, 5]
    assert gate(git, store, 20, 1.06).kind == "passed"


def test_since_a_commit_of_a_merged_branch_is_since_its_merge(
    git: Git, store: Store, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0] * 4)
    git("switch", "--quiet", "--create", "dear")
    dear = git.commit("dear")
    merge(git, "dear")
    assert gate(git, store, 10, 1.06).kind == "regressed"
    git.commit("later")
    assert gate(git, store, 11, 1.06).kind == "regressed"
    accept(git, tokenpower, "8%", "--since", dear)
    assert numbers(find(git, store).run_ids) == [11, 10]


def test_an_improvement_may_begin_a_level(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 4)
    git.commit("quicker")
    better = gate(git, store, 10, 0.8)
    assert better.kind == "improved"
    assert "--up-to 0%" in text(better)
    accept(git, tokenpower, "0%", "--since", "HEAD")
    assert numbers(find(git, store).run_ids) == [10]


def test_another_machine_keeps_what_it_has(git: Git, store: Store, tokenpower: Command) -> None:
    stored_levels(git, store, [1.0] * 3)
    other = KEY | {"gpu.name": "NVIDIA A100"}
    store.write(run(20, msgspec.structs.replace(at_level(), key=other), commit=git.head))
    accept(git, tokenpower, "12%")
    gate(git, store, 21, 1.07)
    git.commit("next")
    baseline = Baseline.resolve("main", store, repository(git))
    assert numbers(baseline.find(TEST, KEY).run_ids) == [21]
    assert baseline.find(TEST, KEY).acceptance is None
    elsewhere = baseline.find(TEST, other)
    assert numbers(elsewhere.run_ids) == [20]
    assert elsewhere.acceptance is not None


def test_names_and_paths_are_taken_at_their_word(git: Git, store: Store) -> None:
    store.write(run(1, at_level(verdicts=regressed("main@0000000")), commit=git.commit("one"), name="v1"))
    for name in ("name:v1", f"path:{store.path}"):
        assert numbers(Baseline.resolve(name, store, repository(git)).find(TEST, KEY).run_ids) == [1]


def test_the_nearest_baseline_decides(git: Git, store: Store) -> None:
    commits = stored_levels(git, store, [1.0] * 3)
    pinned, rolling = f"v1.0@{commits[0][:7]}", f"main@{commits[2][:7]}"
    crept = (verdict("regressed", pinned), verdict("passed", rolling))
    store.write(run(10, at_level(verdicts=crept), commit=git.commit("crept")))
    assert numbers(find(git, store).run_ids)[0] == 10
    stepped = (verdict("passed", pinned), verdict("regressed", rolling))
    store.write(run(11, at_level(verdicts=stepped), commit=git.commit("stepped")))
    assert numbers(find(git, store).run_ids)[0] == 10
    store.write(run(12, at_level(verdicts=(verdict("regressed", pinned),)), commit=git.commit("alone")))
    assert numbers(find(git, store).run_ids)[0] == 10
    over = (VerdictRecord("over budget", "over.", "joules_per_token"), verdict("passed", rolling))
    store.write(run(13, at_level(verdicts=over), commit=git.commit("over")))
    assert numbers(find(git, store).run_ids)[0] == 13


def test_a_test_that_is_not_stored_is_named_by_its_id(git: Git, tokenpower: Command) -> None:
    git.write("tests/test_new.py", "")
    git.commit("one")
    ended = tokenpower("accept", "tests/test_new.py::test_x", "--up-to=5%", "--reason=x")
    assert ended.code == 0
    assert ended.out.endswith("holds no run of it: see to it that the name is right.\n")
    (file,) = (git.path / ACCEPTED_FOLDER).iterdir()
    assert file.name == Path(committed_file(ACCEPTED_FOLDER, "tests/test_new.py::test_x")).name
    unknown = tokenpower("accept", "test_x", "--up-to=5%", "--reason=x")
    assert unknown.code == 4
    assert "give the test's whole id" in unknown.err


def test_an_ignored_file_is_told(git: Git, store: Store, tokenpower: Command) -> None:
    git.write(".gitignore", ".tokenpower\n")
    stored_levels(git, store, [1.0])
    assert "git add --force" in tokenpower("accept", TEST, "--up-to=5%", "--reason=x").out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([TEST, "--up-to=8%", "--reason= "], "--reason is empty"),
        ([TEST, "--up-to=8%", "--reason", "..."], "--reason is only '...': say why"),
        ([TEST, "--up-to=8", "--reason=x"], "--up-to=8: is 800%: write '8%' for 8 percent"),
        ([TEST, "--up-to=-3%", "--reason=x"], "--up-to=-3%: must be a share"),
        ([TEST, "--up-to=8%", "--reason=x", "--days=0"], "--days=0: must be from 1 to 3650"),
        ([TEST, "--up-to=8%", "--reason=x", "--since=nowhere"], "git knows no 'nowhere'"),
        ([TEST, "--up-to=8%", "--reason=x", "--since=aside"], "is not in the history of HEAD"),
        (["zzz", "--up-to=8%", "--reason=x"], "no stored test is called like 'zzz'"),
    ],
)
def test_mistakes(git: Git, store: Store, tokenpower: Command, arguments: list[str], complaint: str) -> None:
    stored_levels(git, store, [1.0])
    git("switch", "--quiet", "--create", "aside")
    git.commit("aside")
    git("switch", "--quiet", "main")
    ended = tokenpower("accept", *arguments)
    assert (ended.code, ended.out) == (4, "")
    assert re.search(f"tokenpower accept: .*{complaint}", ended.err)
    assert not (git.path / ACCEPTED_FOLDER).exists()


def test_bless_says_what_takes_its_place(git: Git, tokenpower: Command) -> None:
    ended = tokenpower("bless", "HEAD", "--reason=x")
    assert ended.code == 4
    assert "tokenpower accept TEST" in ended.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "test = 1",
        'test = "a"\nup_to = 0.08\nreason = "x"\nexpires = 2026-01-01',
        "test = [",
        'test = "a"\nup_to = "8%"\nreason = "x"\nexpires = 2026-01-01\nsince = "main"',
        'test = "a"\nup_to = "-8%"\nreason = "x"\nexpires = 2026-01-01',
    ],
    ids=["empty", "kinds", "number", "toml", "since", "share"],
)
def test_a_file_that_is_no_acceptance_stops_the_run(
    git: Git, store: Store, text: str, tokenpower: Command
) -> None:
    stored_levels(git, store, [1.0])
    git.write(f"{ACCEPTED_FOLDER}/x.toml", text)
    ended = tokenpower("compare", "HEAD", "HEAD")
    assert ended.code == 4
    assert f"{ACCEPTED_FOLDER}/x.toml" in ended.err
    assert ("since = 'main' is no commit" if "since" in text else "is no acceptance (") in ended.err
