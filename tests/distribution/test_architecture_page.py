"""The architecture page's picture: drawn from imports, checked in CI, refused where rooms import in a circle."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("grimp", reason="grimp (with import-linter) reads the imports")

SCRIPT = Path(__file__).parents[2] / "docs" / "draw_architecture.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the script, over a package of three rooms."""
    spec = importlib.util.spec_from_file_location("draw_architecture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    package = tmp_path / "three_rooms"
    for room, text in {
        "attic": "from three_rooms.hall import door\nfrom three_rooms.cellar import coal\n",
        "hall": "from three_rooms.cellar import coal\n",
        "cellar": "",
    }.items():
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text(text)
    (package / "hall" / "door.py").write_text("")
    (package / "cellar" / "coal.py").write_text("")
    (package / "__init__.py").write_text("")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "architecture.md").write_text(
        f"before\n\n{module.BEGIN}\nold\n{module.END}\n\nafter\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        "[tool.importlinter]\n[[tool.importlinter.contracts]]\nname = 'floors'\ntype = 'layers'\n"
        "layers = ['three_rooms.attic', 'three_rooms.hall', 'three_rooms.cellar']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "PACKAGE", "three_rooms")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "docs" / "architecture.md")
    monkeypatch.delitem(sys.modules, "three_rooms", raising=False)
    return module


def test_it_draws_rooms_from_above_to_below_and_lists_every_import(script: ModuleType) -> None:
    assert script.main([]) == 0
    page = script.PAGE.read_text()
    assert page.startswith("before\n")
    assert page.endswith("\n\nafter\n")
    assert "old" not in page
    picture = page.partition("flowchart TD\n")[2].partition("```")[0]
    assert [line.strip() for line in picture.splitlines()] == [
        "attic",
        "hall",
        "cellar",
        "attic --> hall",  # and not to the cellar: the way through the hall says so
        "hall --> cellar",
    ]
    assert "| `attic` | `cellar`, `hall` |" in page


def test_check_tells_an_old_picture_and_leaves_it(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = script.PAGE.read_text()
    assert script.main(["--check"]) == 1
    assert script.PAGE.read_text() == before
    assert "run python docs/draw_architecture.py" in capsys.readouterr().err
    script.main([])
    assert script.main(["--check"]) == 0


def test_a_circle_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.circle_of({"a": ("b",), "b": ("c",), "c": ("b",)}) == ["b", "c"]
    (script.ROOT / "three_rooms" / "cellar" / "coal.py").write_text("import three_rooms.attic\n")
    assert script.main([]) == 1
    assert "in a circle" in capsys.readouterr().err


def test_a_page_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        script.redrawn("no markers", "picture")
