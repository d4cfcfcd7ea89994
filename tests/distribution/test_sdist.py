"""The source distribution holds the committed files of its folders and nothing else; its wheel holds the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the distributions")

ROOT = Path(__file__).parents[2]
FOLDERS = ("pytest_tokenpower", "tests", "benchmarks", "docs", "examples", "requirements")
FILES = (
    "conftest.py",
    "hatch_build.py",
    "pyproject.toml",
    "tox.ini",
    "action.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
)
MADE = "PKG-INFO"


def committed() -> list[str]:
    """Return the files of the checkout that git knows and that are there."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout: nothing tells which files belong to the source")
    return [file for file in listed.split("\0") if file and (ROOT / file).is_file()]


def litter(tree: Path) -> None:
    """Leave in a checkout what developers leave there."""
    environments = ("myenv", ".tox/py311", "tests/env", "docs/myenv", "pytest_tokenpower/env")
    for environment in environments:
        packages = tree / environment / "lib" / "python3.11" / "site-packages"
        (packages / "somebody").mkdir(parents=True)
        (packages / "somebody" / "__init__.py").write_text("")
        (packages / "somebody" / "METADATA.txt").write_text("")
        scripts = tree / environment / "bin"
        scripts.mkdir()
        (scripts / "activate").write_text("")
        (scripts / "activate_this.py").write_text("")
        (scripts / "python").symlink_to(Path(sys.executable).resolve())
        (tree / environment / "lib64").symlink_to("lib")
        (tree / environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    for file in (
        "core.4711",
        "trace.nsys-rep",
        "pytest_tokenpower/core.4711",
        "pytest_tokenpower/models/model.safetensors",
        "tests/trace.nsys-rep",
        "docs/results/raw.tgz",
        "benchmarks/results.json",
    ):
        (tree / file).write_bytes(b"\0" * 1_000_000)
    for file in ("notes.md", "scratch.py", ".tokenpower/runs/run.json", "dist/old.tar.gz", "energy.jsonl"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text("")
    cached = tree / "tests" / "__pycache__"
    cached.mkdir(exist_ok=True)
    (cached / "test_it.cpython-311.pyc").write_bytes(b"\0")


def build(tree: Path, target: str, out: Path) -> Path:
    """Build a distribution of a tree, as a build frontend does."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [file] = out.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a source distribution, built in a littered copy of this checkout."""
    tree = tmp_path_factory.mktemp("checkout")
    for file in committed():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tree / file)
    litter(tree)
    out = tmp_path_factory.mktemp("sdist")
    yield build(tree, "sdist", out)
    shutil.rmtree(tree)
    shutil.rmtree(out)


def test_it_holds_the_committed_files_of_its_folders_and_nothing_else(sdist: Path) -> None:
    expected = {
        file for file in committed() if file in FILES or file.startswith(tuple(f"{f}/" for f in FOLDERS))
    }
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert members.keys() == expected | {MADE}
    # pip refuses links that point out of the archive, as those of a virtual environment do.
    assert not [name for name, member in members.items() if not member.isfile()]


def test_what_a_release_needs_is_in_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held.issuperset(FILES)
    assert not [folder for folder in FOLDERS if not any(name.startswith(f"{folder}/") for name in held)]


def test_the_wheel_built_from_it_holds_the_package_only(
    sdist: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        for member in members:
            source = archive.extractfile(member)
            assert source is not None
            (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / member.name).write_bytes(source.read())
    [tree] = tmp_path.iterdir()
    with zipfile.ZipFile(build(tree, "wheel", tmp_path_factory.mktemp("wheel"))) as wheel:
        held = set(wheel.namelist())
        [metadata] = (name for name in held if name.endswith("/METADATA"))
        described_by = wheel.read(metadata).decode()
    # On PyPI nothing lies beside the README.
    links = re.findall(r"\]\(([^)]*)\)", described_by)
    images = [link for link in links if link.endswith(".png")]
    assert images
    assert all("/pytest-tokenpower/raw/main/docs/images/" in image for image in images)
    assert [link for link in links if not link.startswith("https://")] == []
    package = {
        member.name.partition("/")[2]
        for member in members
        if member.name.partition("/")[2].startswith("pytest_tokenpower/")
    }
    described = {name for name in held if name.partition("/")[0].endswith(".dist-info")}
    assert held - described == package
    assert "pytest_tokenpower/py.typed" in package
    assert {name.rpartition("/")[2] for name in described} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }
