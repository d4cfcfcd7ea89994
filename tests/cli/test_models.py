"""`tokenpower models`: the list, one model, this machine and another, and what the documentation says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_tokenpower.cli import models as command
from pytest_tokenpower.meters.adapters.nvml.devices import GpuMemory
from pytest_tokenpower.models import find_model, load_models
from pytest_tokenpower.models.architecture import FAMILIES
from pytest_tokenpower.models.registry import MODELS_VARIABLE
from tests.support.commands import Command

GIB = 1 << 30
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    monkeypatch.setattr(command, "gpus", lambda: ())
    monkeypatch.setattr(command, "system_memory", lambda: 20 * GIB)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(GpuMemory(index, "NVIDIA H100", 80 * GIB) for index in range(2))
    monkeypatch.setattr(command, "gpus", lambda: found)


def rows(text: str) -> dict[str, str]:
    """Return the last cell of each line of the table, by model."""
    _, _, table = text.partition("\n-")
    return {
        cells[0]: " ".join(cells[1:])
        for line in table.splitlines()[1:]
        if (cells := re.split(r" {2,}", line))
    }


def verdicts(text: str) -> dict[str, str]:
    """Return what the last column says of each model."""
    return {name: line.split()[-1] for name, line in rows(text).items()}


def test_without_a_gpu_the_machines_memory_decides(tokenpower: Command) -> None:
    ended = tokenpower("models")
    assert (ended.code, ended.err) == (0, "")
    assert "this machine: no GPU, 20.0 GiB of memory" in ended.out
    said = verdicts(ended.out)
    assert said.keys() == load_models().keys()
    # 18 GiB are to be had: 15.0 with 1 GiB of cache are in, 17.2 with 2.6 are not.
    assert (said["llama-3.1-8b"], said["gemma-2-9b"], said["tiny"]) == ("yes", "no", "yes")


@pytest.mark.usefixtures("two_gpus")
def test_the_fewest_gpus_of_those_there_are(tokenpower: Command) -> None:
    ended = tokenpower("models")
    assert "this machine: 2× NVIDIA H100, 80.0 GiB each" in ended.out
    lines = rows(ended.out)
    assert lines["llama-3.1-8b"].endswith(" 131072 1")
    assert lines["llama-3.1-70b"].endswith(" 131072 2")
    assert lines["mixtral-8x22b"].endswith(" 65536 4 of 2")


def test_another_machine(tokenpower: Command) -> None:
    said = verdicts(tokenpower("models", "--memory", "24", "--dtype", "int4").out)
    assert (said["llama-3.1-8b"], said["llama-3.1-70b"], said["llama-3.1-405b"]) == ("1", "2", "16")
    assert verdicts(tokenpower("models", "--memory", "8").out)["falcon-7b"] == "71"
    assert verdicts(tokenpower("models", "--memory", "0.1").out)["llama-3.1-405b"] == "none"


def test_a_dtype_that_does_not_apply_says_so(tokenpower: Command) -> None:
    ended = tokenpower("models", "--dtype", "mxfp4", "--memory", "80")
    assert rows(ended.out)["llama-3.1-8b"].endswith("no mxfp4")
    one = tokenpower("models", "llama-3.1-8b", "--dtype", "mxfp4")
    assert one.code == 4
    assert "llama-3.1-8b has no experts" in one.err


def test_one_model_in_detail(tokenpower: Command) -> None:
    ended = tokenpower("models", "openai/gpt-oss-20b", "--memory", "16")
    assert ended.code == 0
    for line in (
        "gpt-oss-20b",
        "parameters   20,914,757,184",
        "active       4,187,440,704 (4 of 32 experts a token)",
        "windows      12 of 24 layers reach back 128 tokens",
        "weights      12.8 GiB in mxfp4",
        "KV cache     48.0 KiB a token in bf16, 3.0 GiB for 131072 tokens",
        "fits         on 1 GPU, in mxfp4; GPUs with 16 GiB each",
    ):
        assert f"{line}\n" in ended.out


@pytest.mark.usefixtures("two_gpus")
def test_one_that_does_not_fit(tokenpower: Command) -> None:
    out = tokenpower("models", "deepseek-v3").out
    assert "fits         on 16 GPUs, of which there are 2, in fp8; this machine: 2× NVIDIA H100" in out
    assert "latent: 576 values cached in a layer" in out


def test_one_that_no_machine_holds(tokenpower: Command) -> None:
    assert (
        "no number of GPUs that it divides by is enough"
        in tokenpower("models", "phi-4", "--memory", "0.5").out
    )
    assert "fits         no, in bf16; this machine: no GPU" in tokenpower("models", "gemma-3-27b").out


def test_as_json(tokenpower: Command) -> None:
    said = json.loads(tokenpower("models", "--json", "--memory", "80").out)
    assert said["device_memory_bytes"] == 80 * GIB
    assert [row["name"] for row in said["models"]] == list(load_models())
    one = json.loads(tokenpower("models", "llama-3.1-70b", "--json", "--memory", "80").out)
    assert one == {
        "name": "llama-3.1-70b",
        "hub": "meta-llama/Llama-3.1-70B",
        "model_type": "llama",
        "parameters": 70_553_706_496,
        "active_parameters": 70_553_706_496,
        "dtype": "bf16",
        "weight_bytes": 141_107_412_992,
        "kv_bytes_per_token": 327_680,
        "max_positions": 131_072,
        "minimum_devices": 2,
        "fits": True,
    }
    assert one in said["models"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-9",), "unknown model 'llama-9'"),
        (("--dtype", "fp7"), "dtype 'fp7' is not known"),
        (("--file", "gone.toml"), "gone.toml: this file of models cannot be read"),
    ],
)
def test_a_users_mistake(tokenpower: Command, arguments: tuple[str, ...], message: str) -> None:
    ended = tokenpower("models", *arguments)
    assert ended.code == 4
    assert f"tokenpower models: {message}" in ended.err


@pytest.mark.parametrize("memory", ["0", "-3", "much", "nan", "inf"])
def test_a_memory_that_is_none(tokenpower: Command, memory: str) -> None:
    ended = tokenpower("models", f"--memory={memory}")
    assert ended.code == 2
    assert "GiB of one GPU are wanted" in ended.err


class TestTheDocumentation:
    def test_shows_the_list_as_the_command_does(self, tokenpower: Command) -> None:
        table = tokenpower("models", "--memory", "80").out.strip()
        assert f"```\n{table}\n```" in PAGE.read_text(encoding="utf-8")

    def test_has_an_example_of_ones_own_that_loads(self, tmp_path: Path) -> None:
        block = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert block is not None
        file = tmp_path / "models.toml"
        file.write_text(block[1])
        assert find_model("our-model-3b", file).parameters == 3_212_749_824

    def test_names_every_family(self) -> None:
        text = re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))
        assert f"`model_type` is one of {', '.join(FAMILIES)}." in text
