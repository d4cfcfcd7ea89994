"""Whose code a run of the baseline has imported, and what its requirements are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_tokenpower.runner.child import ChildRun
from pytest_tokenpower.runner.requirements import differing_requirements
from pytest_tokenpower.runner.sources import shown
from pytest_tokenpower.store.git import Repository, changed_files, check_out_submodules
from tests.support.repositories import Git, plain_git

ASK = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[3]) if sys.argv[3] else None
import app
from pytest_tokenpower.runner.sources import foreign_modules, import_roots
top = Path(sys.argv[1])
print(json.dumps([[str(each) for each in import_roots(top)], sorted(foreign_modules(top))]))
"""


def ask(top: Path, folder: Path, late: str = "") -> tuple[list[str], list[str]]:
    """Import roots and foreign modules of a process that has imported ``app`` with ``folder`` on its path."""
    code = f"import sys; sys.path.insert(1, {str(folder)!r})\n{ASK}"
    command = [sys.executable, "-c", code, str(top), "", late]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder.anchor)
    roots, foreign = json.loads(done.stdout)
    return roots, foreign


@pytest.mark.parametrize("layout", ["", "src", "packages/app/src", "lib/python"])
def test_code_of_the_tree_is_found_wherever_it_lies(tmp_path: Path, layout: str) -> None:
    place = tmp_path / "tree" / layout
    (place / "app").mkdir(parents=True)
    (place / "app" / "__init__.py").write_text("from app import inner")
    (place / "app" / "inner.py").touch()
    roots, foreign = ask(tmp_path / "tree", place)
    assert (layout or ".") in roots
    assert foreign == ["app", "app.inner"]
    assert ask(tmp_path / "elsewhere", place) == ([], [])


def test_an_environment_inside_the_tree_is_not_of_the_tree(tmp_path: Path) -> None:
    for folder in (".venv/lib/python3.12/site-packages", "env/anything"):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "app.py").touch()
        (tmp_path / folder.partition("/")[0] / "pyvenv.cfg").touch()
        assert ask(tmp_path, place) == ([], [])


def install(place: Path, project: Path, files: list[str], *, editable: bool) -> None:
    """Leave what pip leaves of a project in ``place``."""
    record = place / "app-1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: app\nVersion: 1\n")
    url = {"url": project.as_uri(), "dir_info": {"editable": editable}}
    (record / "direct_url.json").write_text(json.dumps(url))
    (record / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_copy_that_was_installed_from_the_tree_is_of_the_tree(tmp_path: Path) -> None:
    place, project = tmp_path / "site", tmp_path / "tree" / "packages" / "my app"
    (project / "src" / "app").mkdir(parents=True)
    install(place, project, ["app.py"], editable=False)
    (place / "app.py").touch()
    roots, foreign = ask(tmp_path / "tree", place)
    assert roots == ["packages/my app/src", "packages/my app"]
    assert foreign == ["app"]


def test_the_hook_of_an_editable_install_is_not(tmp_path: Path) -> None:
    place, project = tmp_path / "site", tmp_path / "tree"
    project.mkdir()
    install(place, project, ["app.py"], editable=True)
    (place / "app.py").touch()
    assert ask(project, place)[1] == []


def test_many_modules_are_named_by_their_packages() -> None:
    modules = {f"{name}{inner}": f"/{name}" for name in "abcde" for inner in ("", ".x", ".x.y")}
    assert shown(modules) == "a (/a), b (/b), c (/c) and 2 more"


def test_a_child_that_imports_the_other_tree_is_refused(tmp_path: Path) -> None:
    from pytest_tokenpower.errors import TokenPowerError

    child = ChildRun(tmp_path, [], foreign=tmp_path / "tree")
    loaded = tmp_path / "1.loaded"
    with pytest.raises(TokenPowerError, match="does not say what it has imported"):
        child._check_sources(loaded, "the run")
    loaded.write_text("{}")
    child._check_sources(loaded, "the run")
    loaded.write_text('{"app": "/tree/app.py"}')
    with pytest.raises(
        TokenPowerError, match=r"did not measure the code of its own commit: it imported app \(/tree"
    ):
        child._check_sources(loaded, "the run")


def trees(tmp_path: Path, file: str, here: str | None, there: str | None) -> tuple[Path, Path]:
    for name, text in (("here", here), ("there", there)):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
    return tmp_path / "here", tmp_path / "there"


@pytest.mark.parametrize(
    ("file", "install", "locked"),
    [
        ("requirements.txt", ("-r", "requirements.txt"), ()),
        ("requirements-gpu.txt", ("-r", "requirements-gpu.txt"), ()),
        ("requirements/base.txt", ("-r", "requirements/base.txt"), ()),
        ("constraints.txt", ("-c", "constraints.txt"), ()),
        ("packages/app/requirements.txt", ("-r", "packages/app/requirements.txt"), ()),
        ("packages/app/setup.py", ("-e", "./packages/app"), ()),
        ("setup.cfg", ("-e", "."), ()),
        ("uv.lock", (), ("uv.lock",)),
        ("packages/app/poetry.lock", (), ("packages/app/poetry.lock",)),
        ("pylock.toml", (), ("pylock.toml",)),
        ("packages/other/requirements.txt", (), ()),
        ("packages/app/src/app/data.txt", (), ()),
    ],
)
def test_requirements_of_the_code_itself_count(
    tmp_path: Path, file: str, install: tuple[str, ...], locked: tuple[str, ...]
) -> None:
    here, there = trees(tmp_path, file, "new", "old")
    found = differing_requirements([file], here, there, [Path("packages/app/src"), Path("tests")])
    assert (found.install, found.locked) == (install, locked)


@pytest.mark.parametrize(
    ("new", "differs"),
    [
        ('[project]\nname = "a"\ndependencies = ["torch>2"]', True),
        ('[project]\nname = "a"\ndependencies = ["torch"]\n[tool.pytest.ini_options]\nx = 1', False),
        ('[project]\nname = "a"\nversion = "2"\ndependencies = ["torch"]', False),
        ('[project]\nname = "a"\ndependencies = ["torch"]\n[dependency-groups]\ntest = ["x"]', True),
        ("not = toml = at all", True),
    ],
)
def test_of_a_project_file_only_what_it_asks_for_counts(tmp_path: Path, new: str, differs: bool) -> None:
    old = '[project]\nname = "a"\ndependencies = ["torch"]'
    here, there = trees(tmp_path, "pyproject.toml", new, old)
    found = differing_requirements(["pyproject.toml"], here, there, [])
    assert bool(found.install) is bool(found.files) is differs


def test_submodules_come_along_from_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_git(monkeypatch, tmp_path)
    inner = Git.init(tmp_path / "inner")
    inner.commit("old", engine="old")
    outer = Git.init(tmp_path / "outer")
    outer("submodule", "--quiet", "add", f"file://{inner.path}", "libs/inner")
    old = outer.commit("outer")
    Git(outer.path / "libs/inner").commit("new", engine="new")
    outer.commit("outer moves on")
    inner.path.rename(tmp_path / "gone")
    tree = tmp_path / "tree"
    outer("worktree", "add", "--quiet", "--detach", str(tree), old)
    check_out_submodules(outer.path, tree)
    assert (tree / "libs/inner/engine.py").read_text() == "old"
    assert (outer.path / "libs/inner/engine.py").read_text() == "new"
    repository = Repository.discover(outer.path)
    assert repository is not None
    assert "libs/inner" in changed_files(repository, old)


def test_a_submodule_that_is_not_checked_out_here_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_git(monkeypatch, tmp_path)
    inner = Git.init(tmp_path / "inner")
    inner.commit("one")
    outer = Git.init(tmp_path / "outer")
    outer("submodule", "--quiet", "add", f"file://{inner.path}", "inner")
    outer.commit("outer")
    clone = outer.clone(tmp_path / "clone")
    tree = tmp_path / "tree"
    clone("worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
    check_out_submodules(clone.path, tree)
    assert list((tree / "inner").iterdir()) == []
