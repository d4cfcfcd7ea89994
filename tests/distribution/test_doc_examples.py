"""Every block of code in the documentation: its commands exist, its Python runs, its files are read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_tokenpower import cli
from pytest_tokenpower.meters.recording import read_recording
from pytest_tokenpower.models import load_models
from pytest_tokenpower.plugin.options import add_options
from pytest_tokenpower.store.acceptances import decode_acceptance
from pytest_tokenpower.suites.schema import parse_suite

ROOT = Path(__file__).parents[2]
RAN = ("index.md", "tutorial.md", "how-to.md")
"""Pages whose titled files and console blocks tests/distribution/test_docs.py runs from top to bottom."""


class Block(NamedTuple):
    """A fenced block: where it begins, in which language, and its title."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def blocks() -> Iterator[Block]:
    fence = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text("utf-8")
        for match in fence.finditer(text):
            yield Block(path.name, text.count("\n", 0, match.start()) + 1, match[1], match[2] or "", match[3])


def indented() -> Iterator[Block]:
    """Yield each page's code that is indented and not fenced, as one block."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        yield Block(path.name, 0, "", "", "\n".join(re.findall(r"^    (.*)", text, re.MULTILINE)))


BLOCKS = list(blocks())
COMMAND = re.compile(r"^(?:\$ |- run: )?((?:tokenpower|pytest|git|pip|python3|gh) .*)$")
COMMANDS = [
    block
    for block in [*BLOCKS, *indented()]
    if block.language in ("", "bash", "console", "yaml") and any(map(COMMAND.match, block.lines))
]

STAND_IN = """
import asyncio

import pytest
import pytest_tokenpower
from pytest_tokenpower import TokenCount
from pytest_tokenpower.engines import EngineIdentity, Generation
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio
PROMPTS, SAMPLING = [[1, 2, 3], [4, 5, 6]], None


class Engine:
    device_ids = ()

    def __init__(self, model, **options):
        self.seconds = 0.25 if options.get("quantization") else 0.5
        self.identity = EngineIdentity(
            "stand-in", "1", model, {"quantization": options.get("quantization")}, {}
        )

    def generate(self, batch, arrivals=None):
        VIRTUAL_TIME.sleep(self.seconds)
        return Generation([[1] * batch.new_tokens] * len(batch.prompts), batch.tokens)

    serve = generate

    def close(self):
        pass


class LLM:
    def generate(self, prompts, sampling=None):
        VIRTUAL_TIME.sleep(0.5)
        return TokenCount(prompt=6, generated=1000)

    async def chat(self, prompt):
        return self.generate([prompt])


@pytest.fixture
def llm():
    return LLM()


client = llm


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
"""What the examples leave to the reader: an engine, a model and a client."""

SUBSTITUTED = {
    **dict.fromkeys(
        (f'EngineSpec("{engine}", "meta-llama/Llama-3.1-8B"' for engine in ("vllm", "openai")),
        'EngineSpec("stand_in:Engine", "m", isolated=False',
    ),
    "with measure()": 'llm = LLM()\nwith measure("simulated:virtual")',
    "return pytest_tokenpower.TokenCount": "pytest_tokenpower.TokenCount",
}

NOT_RUN = {
    "models.md": "it would write 16 GB of weights (tests/models/test_random_weights.py writes small ones)"
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({block.page for block in BLOCKS if block.language == "python" and not block.title})
)
def test_python_runs(page: str, tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = -p no:cacheprovider\nenergy_source = simulated:virtual\n"
    )
    for block in BLOCKS:
        if block.page == page and block.title and page not in RAN:
            (tmp_path / block.title).write_text(block.text)
    found = [block for block in BLOCKS if (block.page, block.language, block.title) == (page, "python", "")]
    for number, block in enumerate(found):
        text = block.text
        for old, new in SUBSTITUTED.items():
            text = text.replace(old, new)
        compile(text, page, "exec")
        if page not in NOT_RUN:
            (tmp_path / f"test_{number}.py").write_text(
                f"from stand_in import *\n{text}\n\ndef test_end(): pass\n"
            )
    if page not in NOT_RUN:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rs"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "skipped" not in done.stdout, done.stdout


def energy_options() -> set[str]:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    return {name for each in parser.getgroup("energy").options for name in each.names()}


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_are_taken(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in filter(COMMAND.match, block.lines):
        for words in _commands(COMMAND.sub(r"\1", line)):
            if words[0] == "tokenpower" and not words[1].startswith("-"):
                ran: list[object] = []
                monkeypatch.setattr(
                    cli._module(words[1]), "run", lambda given, ran=ran: ran.append(given) or 0
                )
                assert cli.main(words[1:]) == 0, line
                assert ran, line
            options = {word.partition("=")[0] for word in words if word.startswith("--energy-")}
            assert options <= energy_options(), line


def _commands(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", "|", ";"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


@pytest.mark.parametrize(
    "page",
    sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]),
)
def test_options_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"--energy-[a-z-]*[a-z]", (ROOT / page).read_text("utf-8")))
    assert named <= energy_options()


def _gitlab(text: str) -> None:
    _by_schema(text, "vendor.gitlab-ci")


def _buildkite(text: str) -> None:
    _by_schema(text, "vendor.buildkite")


def _by_schema(text: str, schema: str) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema holds the services' own schemas")
    Path("job.yaml").write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, "job.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def _shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _models(text: str) -> None:
    Path("models.toml").write_text(text, "utf-8")
    assert "our-model-3b" in load_models("models.toml")


def _recording(text: str) -> None:
    Path("run.jsonl").write_text(text, "utf-8")
    assert len(read_recording(Path("run.jsonl")).windows) == 1


def _suite(text: str) -> None:
    """Read a suite, or tables of one."""
    parse_suite(text if "[axes]" in text else f"[axes]\n{text}", "suites.md")


READERS: dict[tuple[str, str, int], Callable[[str], object]] = {
    ("ci.md", "yaml", 0): _gitlab,
    ("ci.md", "yaml", 1): _buildkite,
    ("ci.md", "bash", 0): _shell,
    # Groovy has no parser here: its shell script is checked.
    ("ci.md", "groovy", 0): lambda text: _shell(text.split("'''")[1].lstrip()),
    ("doctor.md", "yaml", 0): lambda text: None,  # One step: its command is taken, above.
    ("models.md", "toml", 0): _models,
    ("recording-format.md", "json", 0): _recording,
    ("recording-format.md", "json", 1): json.loads,
    ("store.md", "toml", 0): lambda text: decode_acceptance(text, source="store.md"),
    **{("suites.md", "toml", number): _suite for number in range(5)},
    ("architecture.md", "mermaid", 0): lambda text: None,  # docs/draw_architecture.py --check.
}
"""What reads each block that is a file, by page, language and number."""


def test_every_file_is_read_by_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: dict[tuple[str, str], int] = {}
    unknown = []
    for block in BLOCKS:
        number = seen.get(block[:1] + block[2:3], 0)
        seen[block.page, block.language] = number + 1
        if block.language in ("python", "console") or block.title:
            continue
        if block.language in ("", "bash") and (block.page, block.language, number) not in READERS:
            # Commands, or what a program has printed.
            continue
        read = READERS.get((block.page, block.language, number))
        if read is None:
            unknown.append(f"{block.page}:{block.line}")
        else:
            read(block.text)
    assert unknown == []
