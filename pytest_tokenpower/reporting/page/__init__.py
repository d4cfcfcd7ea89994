"""The report as one page that opens without a network: a constant template, and data that only its script reads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_tokenpower.reporting.page.content import content, soak_content
from pytest_tokenpower.reporting.report import Report

if TYPE_CHECKING:
    from pytest_tokenpower.suites.soak import SoakBegun, Stretch

_STYLES = ("uplot/uPlot.min.css", "page.css")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "page.js")


def page(report: Report) -> str:
    """Render the page of a report."""
    return _filled(content(report))


def soak_page(begun: SoakBegun, stretches: Sequence[Stretch], limit: float | None) -> str:
    """Render the page of a soak, its drift beside the limit where there is one."""
    return _filled(soak_content(begun, stretches, limit))


def _filled(data: Mapping[str, Any]) -> str:
    """Fill the template. Nothing of a record is ever markup: the script writes it as text.

    A content security policy names the page's own scripts and styles by their hashes, and forbids everything else.
    """
    styles, scripts = [_asset(name) for name in _STYLES], [_asset(name) for name in _SCRIPTS]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hashes(styles)}; script-src {_hashes(scripts)}"
    )
    blocks = {
        "policy": policy,
        "styles": "\n".join(f"<style>{style}</style>" for style in styles),
        "data": script_safe(msgspec.json.encode(data).decode()),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    text = _asset("page.html")
    before, *parts = text.split("{{")
    # Each placeholder is filled once, from the template: data that looks like one stays what it is.
    filled = (blocks[name] + rest for name, rest in (part.split("}}", 1) for part in parts))
    return before + "".join(filled)


def script_safe(json: str) -> str:
    """JSON that may stand in a script element: no character in it can end the element or begin a comment."""
    for character in "<>&\u2028\u2029":
        json = json.replace(character, f"\\u{ord(character):04x}")
    return json


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8").strip()


def _hashes(blocks: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
