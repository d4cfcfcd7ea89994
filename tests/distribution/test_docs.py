"""The documentation: links resolve, the reference is complete, and its examples run."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from pytest_tokenpower import Energy, Result
from pytest_tokenpower.cli import COMMANDS
from pytest_tokenpower.core.settings import Limits
from pytest_tokenpower.plugin import hookspecs, marker
from pytest_tokenpower.plugin.options import INI, add_options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), DOCS / "llms.txt"])
# Members of Energy that the plugin alone uses.
INTERNAL = {"refusal", "refused_late", "boards", "gpu_ids", "used", "attempts", "end_body", "finish"}
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OURS = re.compile(
    r"https://(?:github\.com/pytest-tokenpower/pytest-tokenpower/(?:blob|tree)"
    r"|raw\.githubusercontent\.com/pytest-tokenpower/pytest-tokenpower)/main/(.*)"
)
"""Files of this repository, linked from where no relative link leads to them."""
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_resolves(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
        if ours := OURS.match(link):
            link = "/" + ours[1]  # noqa: PLW2901
        elif re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        folder = ROOT if name.startswith("/") else page.parent
        target = (folder / unquote(name).lstrip("/")).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_reference_has_everything() -> None:
    text = (DOCS / "reference.md").read_text("utf-8")
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    options = [name for each in parser.getgroup("energy").options for name in each.names()]
    members = [name for name in vars(Energy) if not name.startswith("_") and name not in INTERNAL]
    markers = [each.partition("(")[0] for each in (marker.MARKER, marker.CELL_MARKER, marker.SOAK_MARKER)]
    assert options
    wanted = [
        *options,
        *INI,
        *Limits._fields,
        *markers,
        *(f"tokenpower {name}" for name in ("doctor", "demo", "report", "serve-meter")),
        *(name for name in vars(hookspecs) if name.startswith("pytest_tokenpower_")),
        *(f.name for f in dataclasses.fields(Result) if not f.name.startswith("_")),
    ]
    assert [name for name in wanted if not re.search(rf"`[^`\n]*{re.escape(name)}\b", text)] == []
    assert [name for name in members if not re.search(rf"^\| `energy\.{name}\b", text, re.MULTILINE)] == []
    assert [name for name in COMMANDS if not re.search(rf"`(tokenpower )?{name}\b", text)] == []


def test_the_pages_that_are_written_from_the_code_are_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "write_reference.py"))["PAGES"]
    for page, text in written.items():
        assert (DOCS / page).read_text("utf-8") == text(), "python docs/write_reference.py"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "tutorial.md", "how-to.md"])
def test_examples_run(page: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:asyncio -p no:benchmark -p no:check -p no:html "
        "-o energy_warmup_rounds=0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }
    environment.pop("PYTEST_CURRENT_TEST", None)
    ran = 0
    for language, title, text in BLOCK.findall((DOCS / page).read_text("utf-8")):
        if title:
            (tmp_path / title).write_text(text, "utf-8")
        elif language == "console":
            for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                output = f"{command}\n{done.stdout}{done.stderr}"
                assert done.returncode == ("REGRESSED" in shown), output
                if first := shown.split()[:1]:
                    assert first[0] in output
                ran += 1
    assert ran


def test_the_examples_run_in_the_environment_that_they_are_given() -> None:
    """The topmost conftest is theirs, too: what the suite hides from its tests it must not hide from them."""
    names = runpy.run_path(str(ROOT / "conftest.py"))
    assert {name for name in names if not name.startswith("__")} == {"pytest_plugins"}


@pytest.mark.parametrize("path", sorted(DOCS.glob("results/**/*.*")), ids=lambda path: path.name)
def test_results_name_no_folder_of_the_machine_that_they_come_from(path: Path) -> None:
    assert not re.search(rb"/(?:root|home|Users|mnt|work)/[\w.]", path.read_bytes())


@pytest.mark.parametrize(("page", "figure"), [("h200-aa", r"\d+ of \d+"), ("h100-meter", r"[+-]?\d+\.\d %")])
def test_the_figures_beside_other_tools_are_those_of_the_page_that_is_linked(page: str, figure: str) -> None:
    sections = (DOCS / "alternatives.md").read_text("utf-8").split("\n## ")
    [section] = [one for one in sections if f"(results/{page}.md)" in one]
    figures = set(re.findall(figure, section))
    measured = (DOCS / "results" / f"{page}.md").read_text("utf-8")
    assert len(figures) > 10
    assert [
        each for each in sorted(figures) if not re.search(rf"(?<![\d.+-]){re.escape(each)}", measured)
    ] == []
