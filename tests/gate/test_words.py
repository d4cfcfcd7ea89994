"""The page on verdicts has every word that the gate can say, and none that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_tokenpower.gate import acceptance, equal_lengths, messages, operating_point, remarks, verdict
from pytest_tokenpower.gate.verdict import SEVERITY
from pytest_tokenpower.stats.planning import smallest_limit
from pytest_tokenpower.stats.rule import Policy

PAGE = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
FEWEST_WORDS = 4
"""Shorter texts are names, units and joints of sentences."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def phrases() -> list[str]:
    rows = [
        line.split("|")[1] for line in section("What else is said").splitlines() if line.startswith('| "')
    ]
    return [phrase for row in rows for phrase in re.findall(r'"(.+?)"', row)]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else " … " for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences() -> Iterator[str]:
    for module in (acceptance, equal_lengths, messages, operating_point, remarks, verdict):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        docs = {id(one.value) for one in nodes if isinstance(one, ast.Expr)}
        inside = {id(part) for one in nodes if isinstance(one, ast.JoinedStr) for part in one.values}
        for one in nodes:
            if (
                " " in _text(one)
                and id(one) not in docs | inside
                and len(re.findall(r"[A-Za-z]{2,}", _text(one))) >= FEWEST_WORDS
            ):
                yield _text(one)


def test_every_sentence_is_explained() -> None:
    unknown = [each for each in sentences() if not any(phrase in each for phrase in phrases())]
    assert not unknown


def test_no_sentence_is_explained_that_is_never_said() -> None:
    assert len(phrases()) > 30
    every = list(sentences())
    short = ["SM clock … MHz"]
    assert [phrase for phrase in phrases() if not any(phrase in each for each in (*every, *short))] == []


@pytest.mark.parametrize("word", SEVERITY)
def test_every_verdict_is_explained(word: str) -> None:
    assert word in section("The words")


def test_the_table_of_limits_is_what_the_rule_holds() -> None:
    rows = re.findall(
        r"^\| ([\d.]+) % \| (\d+) \| (.+) \|$", section("How many stored runs for which limit"), re.M
    )
    assert len(rows) == 10
    for sd, family, cells in rows:
        for runs, cell in zip((1, 3, 5, 8, 15), cells.split(" | "), strict=True):
            limit = 100 * smallest_limit(float(sd) / 100, runs, Policy(0.03, family=int(family)))
            assert cell == (f"{limit:.1f}" if limit < 20 else "–"), (sd, family, runs)
