"""A test's earlier names: those that git tells of, those that were committed, and those that are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.history import collect, read_line
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.baseline import Baseline, ComparableRuns
from pytest_tokenpower.store.git import RENAMED_FOLDER, Repository
from pytest_tokenpower.store.renames import (
    EarlierNames,
    Rename,
    decode_rename,
    likely_renames,
    write_rename,
)
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.repositories import KEY, Git, measurement, numbers, run

OLD, NEW = "tests/test_a.py::test_old", "tests/test_a.py::test_new"
BODY = "".join(f"# line {number}\n" for number in range(40))


def here(git: Git) -> Repository:
    found = Repository.discover(git.path)
    assert found is not None
    return found


def find(git: Git, store: Store, test: str = NEW, ref: str = "main") -> ComparableRuns:
    return Baseline.resolve(ref, store, here(git), root="", folder=git.path).find(test, KEY)


@pytest.fixture
def stored(git: Git, store: Store) -> str:
    """Return a commit with a stored run of the test under its old name; a topic branch is checked out."""
    git.write("tests/test_a.py", BODY)
    commit = git.commit("one")
    for number, name in enumerate((OLD, f"{OLD}[bf16]", f"{OLD}[int8]")):
        store.write(run(number, measurement(name), commit=commit, root=""))
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    return commit


names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30)


@given(names, names)
def test_a_rename_survives_its_toml(tmp_path_factory: pytest.TempPathFactory, test: str, was: str) -> None:
    top = tmp_path_factory.mktemp("top")
    repository = Repository(top, top / ".git", None, None, (), is_shallow=False)
    path = write_rename(repository, Rename(test, was))
    assert decode_rename(path.read_text("utf-8"), source="x") == Rename(test, was)


@pytest.mark.parametrize(
    ("rename", "test", "was"),
    [
        (Rename("a.py::t", "a.py::s"), "a.py::t", "a.py::s"),
        (Rename("a.py::t", "a.py::s"), "a.py::t[x]", "a.py::s[x]"),
        (Rename("a.py::t[x]", "a.py::t[y]"), "a.py::t[x]", "a.py::t[y]"),
        (Rename("a.py::T", "a.py::S"), "a.py::T::test", "a.py::S::test"),
        (Rename("b.py", "c/d.py"), "b.py::t[x]", "c/d.py::t[x]"),
        (Rename("pkg/new", "pkg/old"), "pkg/new/a.py::t", "pkg/old/a.py::t"),
        (Rename("a.py::t", "a.py::s"), "a.py::t2", None),
        (Rename("a.py::t[x]", "a.py::t[y]"), "a.py::t", None),
    ],
)
def test_what_a_rename_is_about(rename: Rename, test: str, was: str | None) -> None:
    assert rename.earlier(test) == was


def test_renamed_twice_and_in_a_circle() -> None:
    declared = (Rename("a.py::c", "a.py::b"), Rename("a.py::b", "a.py::a"), Rename("a.py::a", "a.py::c"))
    assert EarlierNames(declared=declared).declared("a.py::c") == ("a.py::b", "a.py::a")


@pytest.mark.parametrize(
    ("test", "was"), [("tests", "tests/energy"), ("tests/test_a.py", "tests/test_a.py::TestChat")]
)
def test_what_moved_out_of_a_folder_or_class_into_the_one_around_it(test: str, was: str) -> None:
    declared = (Rename(test, was), Rename(f"{was}::b", f"{was}::a"))
    assert EarlierNames(declared=declared).declared(f"{test}::b") == (f"{was}::b", f"{was}::a")


def test_a_renamed_test_is_followed_once_it_is_said(
    git: Git, store: Store, stored: str, tokenpower: Command
) -> None:
    assert find(git, store).runs == ()
    assert tokenpower("rename", OLD, NEW).code == 0
    found = find(git, store)
    assert numbers(found.run_ids) == [0]
    assert f"runs of {stored[:7]} and before are those of {OLD}" in found.note
    assert numbers(find(git, store, f"{NEW}[int8]").run_ids) == [2]
    assert find(git, store, "tests/test_a.py::test_newer").runs == ()
    [change] = here(git).changes
    assert change.startswith(RENAMED_FOLDER)


def test_runs_of_both_names_are_one_history(git: Git, store: Store, stored: str, tokenpower: Command) -> None:
    tokenpower("rename", OLD, NEW)
    git("add", "--all")
    store.write(run(9, measurement(NEW), commit=git.commit("renamed"), root=""))
    assert numbers(find(git, store, ref="topic~0").run_ids) == [0]  # Of the commits before this one.
    place = StoreContext(store, here(git), git.path)
    for text in ("test_new", NEW):
        history = collect(place, text, read_line(place, None, 200))
        assert history.test == NEW
        assert [point.commit for series in history.series for point in series.points] == [stored, git.head]


def test_a_file_that_was_moved_twice_and_rewritten_is_followed(git: Git, store: Store, stored: str) -> None:
    git("mv", "tests/test_a.py", "tests/test_b.py")
    git.commit("moved")
    git.write("tests/test_b.py", BODY.replace("line", "rewritten, so that nothing is alike"))
    git.commit("rewritten")
    git("mv", "tests/test_b.py", "tests/test_c.py")
    assert numbers(find(git, store, "tests/test_c.py::test_old").run_ids) == [0]  # In the work tree.
    git.commit("moved again")
    assert numbers(find(git, store, "tests/test_c.py::test_old").run_ids) == [0]


def test_a_test_may_move_with_its_file_and_be_renamed(
    git: Git, store: Store, stored: str, tokenpower: Command
) -> None:
    git("mv", "tests/test_a.py", "tests/test_b.py")
    git.commit("moved")
    assert tokenpower("rename", "tests/test_b.py::test_old", "tests/test_b.py::test_new").code == 0
    assert numbers(find(git, store, "tests/test_b.py::test_new").run_ids) == [0]


def test_a_level_that_was_accepted_ends_the_runs_of_the_old_name(
    git: Git, store: Store, stored: str, tokenpower: Command
) -> None:
    tokenpower("rename", OLD, NEW)
    assert tokenpower("accept", NEW, "--up-to", "8%", "--reason", "x").code == 0
    git("add", "--all")
    store.write(run(9, measurement(NEW), commit=git.commit("renamed and accepted"), root=""))
    git("switch", "--quiet", "main")
    git("merge", "--quiet", "--ff-only", "topic")
    git("switch", "--quiet", "--create", "next")
    git.commit("next")
    found = find(git, store)
    assert numbers(found.run_ids) == [9]
    # The runs of these numbers are two hours apart.
    assert [[one.started for one in level] for level in found.earlier] == [
        [(found.runs[0].started or 0) - 9 * 7200]
    ]


def test_who_may_have_become_whom() -> None:
    other = {**KEY, "gpu.name": "another"}
    gone = {"a.py::t[x]": KEY, "a.py::t[y]": KEY, "a.py::far": other}
    new = {"a.py::t_chat[x]": KEY, "a.py::t_chat[y]": KEY, "a.py::zzz[z]": KEY, "b.py::t": KEY}
    assert likely_renames(gone, new) == {"a.py::t": "a.py::t_chat"}
    assert likely_renames({"a.py::one": KEY}, {"b.py::wholly_else": KEY}) == {
        "a.py::one": "b.py::wholly_else"
    }
    assert likely_renames({"a.py::one": KEY, "a.py::two": KEY}, {"a.py::three": KEY}).keys() == {"a.py::one"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((OLD, "tests/test_none.py::test_new"), "does not exist"),
        ((OLD, OLD), "is both names"),
        (("test_nothing", NEW), "no stored test is called like"),
    ],
)
def test_mistakes(
    git: Git, store: Store, stored: str, tokenpower: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    ended = tokenpower("rename", *arguments)
    assert ended.code == 4
    assert complaint in ended.err
    assert not (git.path / RENAMED_FOLDER).exists()


@pytest.mark.parametrize(
    ("text", "was"),
    [
        ("test_old", OLD),
        ("test_a.py::test_old", OLD),
        ("test_old[int8]", f"{OLD}[int8]"),
        ("tests/test_a.py", "tests/test_a.py"),
    ],
)
def test_a_part_of_the_stored_name_will_do(
    git: Git, store: Store, stored: str, tokenpower: Command, text: str, was: str
) -> None:
    ended = tokenpower("rename", text, "tests/test_a.py::test_new")
    assert ended.out.startswith(
        f"tests/test_a.py::test_new was {was} before: stored runs of that name are its own.\nWritten"
    )


def test_a_circle_is_refused(git: Git, store: Store, stored: str, tokenpower: Command) -> None:
    assert tokenpower("rename", OLD, NEW).code == 0
    ended = tokenpower("rename", NEW, OLD)
    assert (ended.code, RENAMED_FOLDER in ended.err) == (4, True)


def test_a_name_that_is_not_stored_here_is_taken_and_said(
    git: Git, stored: str, tokenpower: Command, tmp_path: Path
) -> None:
    ended = tokenpower("rename", f"--storage={tmp_path / 'none'}", "tests/test_a.py::test_x", NEW)
    assert ended.code == 0
    assert "holds none" in ended.out


@pytest.mark.parametrize("text", ["test = 1\n", "was = ['x']", "no toml", 'test = "a"\nwas = ""\n'])
def test_a_file_that_is_no_rename_stops_the_run(git: Git, store: Store, stored: str, text: str) -> None:
    git.write(f"{RENAMED_FOLDER}/x.toml", text)
    with pytest.raises(UsageError, match=f"{RENAMED_FOLDER}/x.toml"):
        find(git, store)
