"""What the text of a baseline means, and which stored runs a test finds in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.core.records import VerdictRecord, encode_run
from pytest_tokenpower.errors import HistoryError, StoreError, UsageError
from pytest_tokenpower.store import baseline as resolve_module
from pytest_tokenpower.store.baseline import Baseline, parse_baseline
from pytest_tokenpower.store.explain import what_was_stored
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.store import Store
from tests.support.repositories import KEY, TEST, Git, measurement, numbers, run


@pytest.fixture
def resolve(git: Git, store: Store) -> Callable[[str], Baseline]:
    """Return what to resolve in: a repository with one commit on main, a branch of it checked out."""
    git.commit("one")
    git("switch", "--quiet", "--create", "topic")
    git.commit("topic")
    repository = Repository.discover(git.path)
    return lambda text: Baseline.resolve(text, store, repository, folder=git.path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("main", (None, "main")),
        (" main ", (None, "main")),
        ("ref:main", ("ref", "main")),
        ("name:v1.0", ("name", "v1.0")),
        ("path:./x", ("path", "./x")),
        ("path:name:x", ("path", "name:x")),
        ("HEAD^{/fix: it}", (None, "HEAD^{/fix: it}")),
    ],
)
def test_prefixes(text: str, expected: tuple[str | None, str]) -> None:
    assert parse_baseline(text) == expected


@pytest.mark.parametrize("text", ["", "  ", "ref:", "path:"])
def test_an_empty_baseline(text: str) -> None:
    with pytest.raises(UsageError, match="is empty"):
        parse_baseline(text)


def test_a_saved_name_holds_also_runs_with_changes(resolve: Callable[[str], Baseline], store: Store) -> None:
    store.write(run(1, commit="a" * 40, dirty=True, name="v1"))
    store.write(run(2, commit="b" * 40, name="v1"))
    store.write(run(3, commit="b" * 40, name="v2"))
    for text in ("v1", "name:v1"):
        baseline = resolve(text)
        assert (baseline.kind, baseline.label) == ("name", "v1")
        assert numbers(baseline.find(TEST, KEY).run_ids) == [2, 1]
    with pytest.raises(UsageError, match=r"no run is saved under the name 'v3'.*: v1, v2\."):
        resolve("name:v3")


def test_a_name_that_is_also_a_ref(resolve: Callable[[str], Baseline], store: Store) -> None:
    store.write(run(1, commit="a" * 40, name="main"))
    found = resolve("main")
    assert found.kind == "ref"
    assert found.note == "main is also a saved run, which is not taken: give name:main for it"
    assert resolve("ref:main").note == ""
    assert resolve("name:main").kind == "name"


def test_a_store_that_is_also_a_ref(resolve: Callable[[str], Baseline], git: Git) -> None:
    Store(git.path / "main").write(run(4))
    found = resolve("main")
    assert found.kind == "ref"
    assert found.note == "main is also a store, which is not taken: give path:main for it"
    assert numbers(resolve("path:main").find(TEST, KEY).run_ids) == [4]
    assert numbers(resolve("./main").find(TEST, KEY).run_ids) == [4]


def test_a_folder_with_a_branchs_name_is_no_store(resolve: Callable[[str], Baseline], git: Git) -> None:
    git.write("main/package.json", "{}")
    assert resolve("main").kind == "ref"


def test_a_ref_with_a_slash(resolve: Callable[[str], Baseline], git: Git) -> None:
    git("branch", "feature/x", "main")
    assert resolve("feature/x").kind == "ref"


@pytest.mark.parametrize("text", ["saved", "saved/runs", "./saved", "path:saved", "deep/saved"])
def test_a_store_by_its_path(resolve: Callable[[str], Baseline], git: Git, text: str) -> None:
    for folder in ("saved", "deep/saved"):
        for number in (1, 2):
            Store(git.path / folder).write(run(number))
    baseline = resolve(text)
    assert (baseline.kind, baseline.label) == ("path", text.removeprefix("path:"))
    assert numbers(baseline.find(TEST, KEY).run_ids) == [2, 1]


def test_run_files_under_any_name(resolve: Callable[[str], Baseline], git: Git) -> None:
    for number in (1, 2):
        git.write(f"exports/run{number}.json", encode_run(run(number)).decode())
    git.write("exports/other.json", "{}")
    baseline = resolve("exports")
    assert numbers(baseline.find(TEST, KEY).run_ids) == [2, 1]
    assert [problem.path.name for problem in baseline.store.problems] == ["other.json"]
    assert numbers(resolve("exports/run1.json").find(TEST, KEY).run_ids) == [1]
    with pytest.raises(StoreError, match=r"other\.json: not a run of pytest-tokenpower"):
        resolve("exports/other.json")
    git.write("empty/other.json", "{}")
    with pytest.raises(UsageError, match="holds no run"):
        resolve("empty")


@pytest.mark.parametrize("text", ["missing.json", "./missing", "/nonexistent/store", "path:missing"])
def test_a_path_that_does_not_exist(resolve: Callable[[str], Baseline], text: str) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        resolve(text)


def test_text_that_means_nothing_tells_everything_that_was_tried(
    resolve: Callable[[str], Baseline], store: Store
) -> None:
    store.write(run(1, name="v1"))
    with pytest.raises(
        HistoryError, match=r"no 'maim' \(tried maim\).*Similar: main.*: v1\..*does not exist"
    ):
        resolve("maim")
    with pytest.raises(HistoryError) as told:
        resolve("https://me:secret@host/project.git")
    assert "secret" not in without_credentials(str(told.value))


def test_only_equal_keys_are_compared(store: Store) -> None:
    store.write(run(1, measurement(), name="x"))
    store.write(run(2, measurement(key=KEY | {"gpu.name": "NVIDIA A100"}), name="x"))
    baseline = Baseline.resolve("name:x", store, None)
    assert numbers(baseline.find(TEST, KEY).run_ids) == [1]
    assert numbers(baseline.find(TEST, KEY, ignore=["gpu.name"]).run_ids) == [2, 1]
    assert numbers(baseline.find(TEST, KEY | {"axis.quantization": "fp8"}, ignore=["quant*"]).run_ids) == [1]


def test_the_nearest_key_is_named(store: Store) -> None:
    far = KEY | {"gpu.name": "NVIDIA A100", "gpu.power_limit_watts": 400}
    store.write(run(1, measurement(key=KEY | {"axis.quantization": "fp8"}), name="x"))
    store.write(run(2, measurement(key=far), name="x"))
    found = Baseline.resolve("name:x", store, None).find(TEST, KEY)
    assert found.why == (
        "none of 2 stored runs on x is comparable; the nearest differs in quantization: none here, fp8 there"
    )


def test_one_stored_key(store: Store) -> None:
    store.write(run(1, name="x"))
    why = Baseline.resolve("name:x", store, None).find(TEST, KEY | {"gpu.name": "NVIDIA L4"}).why
    assert why == ("the one stored run on x is not comparable: GPU model: NVIDIA L4 here, NVIDIA H100 there")


def test_invalid_measurements_are_no_baseline(store: Store) -> None:
    store.write(run(1, measurement(comparable=False), name="x"))
    found = Baseline.resolve("name:x", store, None).find(TEST, KEY)
    assert found.runs == ()
    assert "1 measurement of it on x, none to be compared with" in found.why


def test_broken_runs_are_passed_over_and_counted(store: Store) -> None:
    for number in range(1, 5):
        store.write(run(number, name="x"))
    newest, second, *_ = store.entries()
    newest.path.write_bytes(b"")
    second.path.write_bytes(second.path.read_bytes().replace(b'"joules":100.0', b'"joules":"no"', 1))
    baseline = Baseline.resolve("name:x", store, None, limit_runs=1)
    assert numbers(baseline.find(TEST, KEY).run_ids) == [2]
    assert len(store.problems) == 2
    for entry in store.entries()[2:]:
        entry.path.write_bytes(b"")
    why = Baseline.resolve("name:x", Store(store.path), None).find(TEST, KEY).why
    assert "in the 4 runs on x (4 of them not readable)" in why


def test_an_empty_store_by_its_path(store: Store) -> None:
    store.check_writable()
    baseline = Baseline.resolve(f"path:{store.path}", store, None)
    assert baseline.find(TEST, KEY).why == f"{store.path} holds no run"


def test_only_what_is_needed_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        store.write(run(number, measurement(), measurement(f"other{number}"), name="x"))
    opened: list[str] = []
    real = Store._read

    def read(self: Store, path: str) -> bytes:
        opened.append(path)
        return real(self, path)

    monkeypatch.setattr(Store, "_read", read)
    baseline = Baseline.resolve("name:x", store, None)
    assert opened == []
    assert numbers(baseline.find(TEST, KEY).run_ids) == [19, 18, 17, 16, 15]
    assert len(set(opened)) == 5
    opened.clear()
    assert numbers(baseline.find(TEST, KEY).run_ids) == [19, 18, 17, 16, 15]
    assert numbers(baseline.find("other19", KEY).run_ids) == [19]
    assert len(set(opened)) == len(opened) == 15
    # A test that was never stored does not read the whole store, and says how far it looked.
    monkeypatch.setattr(resolve_module, "SEARCH_BYTES", 3 * store.entries()[0].path.stat().st_size)
    limited = Baseline.resolve("name:x", Store(store.path), None)
    opened.clear()
    assert "in the newest 4 runs on x" in limited.find("absent", KEY).why
    assert len(opened) == 4


def test_a_baseline_is_what_was_stored_when_it_was_resolved(store: Store) -> None:
    store.write(run(1, name="x"))
    baseline = Baseline.resolve("name:x", store, None)
    store.write(run(2, name="x"))
    assert numbers(baseline.find(TEST, KEY).run_ids) == [1]


@pytest.mark.parametrize(
    ("rolling", "said"),
    [("passed", "it can be a baseline"), ("regressed", "1 not before it is accepted (regressed)")],
)
def test_what_was_stored_counts_by_the_nearest_baseline_as_the_gate_does(
    git: Git, rolling: str, said: str
) -> None:
    """A test that has risen since v1.0 fails that limit on, and is a baseline all the same."""
    old, new = git.commit("v1.0"), git.commit("accepted since")
    git.commit("now")
    verdicts = tuple(
        VerdictRecord(kind, label, baseline_runs=("some",), change=0.1)
        for kind, label in ((rolling, f"main@{new[:7]}"), ("regressed", f"v1.0@{old[:7]}"))
    )
    made = run(1, replace(measurement(), verdicts=verdicts), commit=git.head)
    assert said in what_was_stored(made, git.path / "x.json", Repository.discover(git.path), "")


def test_the_rise_that_is_to_be_accepted_is_that_over_the_nearest_baseline(git: Git, store: Store) -> None:
    old, new = git.commit("v1.0"), git.commit("accepted since")
    verdicts = tuple(
        VerdictRecord("regressed", label, baseline_runs=("some",), change=change)
        for label, change in ((f"v1.0@{old[:7]}", 0.2), (f"main@{new[:7]}", 0.05))
    )
    store.write(run(1, replace(measurement(), verdicts=verdicts), commit=git.commit("dearer")))
    git.commit("now")
    found = Baseline.resolve("main", store, Repository.discover(git.path), folder=git.path, root="").find(
        TEST, KEY
    )
    assert " --up-to 7% " in found.why


def test_paths_are_relative_to_the_folder_given(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path / "here" / "saved").write(run(1))
    assert Baseline.resolve("./saved", store, None, folder=tmp_path / "here").entries
    monkeypatch.chdir(tmp_path / "here")
    assert Baseline.resolve("./saved", store, None).entries
