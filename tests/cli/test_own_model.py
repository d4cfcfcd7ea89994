"""The way that docs/suites.md shows: from the paper's claim to a page with a model of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_tokenpower.models.registry import architecture
from tests.support.commands import Command

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "suites.md"


def test_the_suite_and_the_command_of_the_page_give_a_page_of_ones_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenpower: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pytest.ini").write_text("[pytest]\n")
    Path("my-model").mkdir()
    Path("my-model/config.json").write_text(json.dumps(architecture("llama-3.2-1b").hub_config("bfloat16")))
    text = PAGE.read_text("utf-8")
    found = re.search(
        r"```toml\n(# mine\.energy\.toml\n.*?)```\n\n```\ntokenpower (.*?)\n```", text, re.DOTALL
    )
    assert found is not None
    suite, command = found.groups()
    assert len(suite.splitlines()) < 20
    Path("mine.energy.toml").write_text(suite)
    ended = tokenpower(*command.split())
    assert ended.code == 0, ended.err
    assert len(Path("cells.csv").read_text("utf-8").splitlines()) == 1 + 4
    page = Path("page.html").read_text("utf-8")
    for model in ("llama-3.1-8b", "./my-model"):
        assert f"batch 256 against 32 [model={model}]" in page
    assert page.count("not testable here") == 0


def test_a_folder_without_a_configuration_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenpower: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pytest.ini").write_text("[pytest]\n")
    Path("my-model").mkdir()
    Path("mine.energy.toml").write_text(
        '[axes]\nmodel = "./my-model"\nengine = "vllm"\nbatch = 8\nprompt_tokens = 8\n'
    )
    ended = tokenpower(
        "sweep", "mine.energy.toml", "--", "--energy-source=simulated", "--energy-simulated-engines"
    )
    assert ended.code == 1
    assert "its speed cannot be foretold" in ended.out
