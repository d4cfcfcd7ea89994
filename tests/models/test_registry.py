"""The registry: every model's architecture gives its published count, and a user's mistake is named exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models import Model, find_model, load_models
from pytest_tokenpower.models.memory import weight_bytes
from pytest_tokenpower.models.registry import MODELS_VARIABLE, architecture

MINE = """
["mine-1b"]
hub = "me/mine-1b"
source = "my own"
["mine-1b".config]
model_type = "llama"
vocab_size = 1000
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
"""


@pytest.fixture(autouse=True)
def _no_file_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(MINE)
    return file


@pytest.mark.parametrize("model", load_models().values(), ids=lambda model: model.name)
def test_the_architecture_gives_the_published_count(model: Model) -> None:
    if model.hub is None:
        assert model.name in ("tiny", "small")
        return
    assert model.parameters is not None
    assert model.architecture.parameters + model.other == model.parameters
    assert model.source


def test_the_papers_models_and_todays_are_there() -> None:
    families = {model.architecture.shape.family for model in load_models().values()}
    assert families >= {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "falcon", "gemma2"}
    assert families >= {"gemma3_text", "phi3", "gpt_oss", "deepseek_v2", "deepseek_v3"}
    sizes = {"llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"}
    sizes |= {"falcon-7b", "falcon3-10b", "mistral-7b-v0.3", "mistral-small-24b", "qwen3-8b", "qwen3-32b"}
    assert sizes | {"tiny", "small", "mixtral-8x7b", "falcon-180b", "qwen3-coder-480b-a35b"} <= set(
        load_models()
    )


@pytest.mark.parametrize(
    ("name", "billions"),
    # The papers and cards: Mixtral (arXiv 2401.04088), Qwen3 (2505.09388), DeepSeek-V3 (2412.19437) round.
    [("mixtral-8x7b", 13), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22), ("deepseek-v3", 37)],
)
def test_active_parameters_are_those_of_the_cards(name: str, billions: float) -> None:
    assert architecture(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "billions", "size"),
    # Its card counts active weights without the input embedding; the size is that of all tensors of the checkpoint.
    [("gpt-oss-20b", 3.61, 13_761_264_768), ("gpt-oss-120b", 5.13, 65_248_815_744)],
)
def test_gpt_oss_is_what_its_card_and_checkpoint_say(name: str, billions: float, size: int) -> None:
    model = architecture(name)
    active = model.active_parameters - model.sizes["embedding"]
    assert round(active / 1e9, 2) == billions
    assert weight_bytes(model, "mxfp4") == size


def test_a_dense_model_is_active_as_a_whole() -> None:
    assert architecture("qwen3-8b").active_parameters == architecture("qwen3-8b").parameters


def test_a_model_is_found_by_its_hub_id() -> None:
    assert find_model("Meta-Llama/llama-3.1-8B").name == "llama-3.1-8b"


def test_an_unknown_one_lists_what_is_known() -> None:
    with pytest.raises(
        UsageError, match=r"'llama-9': use one of llama-3\.2-1b, .*, small, or add it .*TOKENPOWER_MODELS"
    ):
        find_model("llama-9")


class TestAFileOfOnesOwn:
    def test_adds_models(self, mine: Path) -> None:
        found = find_model("mine-1b", mine)
        assert (found.hub, found.dtype, found.parameters) == ("me/mine-1b", "bf16", None)
        assert found.architecture.shape.head_dim == 16
        assert "llama-3.1-8b" in load_models(mine)

    def test_is_named_by_the_environment(self, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MODELS_VARIABLE, str(mine))
        assert "mine-1b" in load_models()
        assert architecture("mine-1b").shape.kv_heads == 2

    def test_wins_over_ours(self, mine: Path) -> None:
        mine.write_text(MINE.replace("mine-1b", "tiny"))
        assert find_model("tiny", mine).architecture.shape.vocab == 1000

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("hidden_size = 64", "", r'\["mine-1b"\.config\] hidden_size is missing'),
            ("hidden_size = 64", "hidden_size = 64.0", r"config\] hidden_size = 64\.0: a whole number of at least 1"),
            ("hidden_size = 64", "hidden_size = true", r"config\] hidden_size = True: a whole number"),
            ("layers = 2", "layers = 0", r"config\] num_hidden_layers = 0: a whole number of at least 1"),
            ("heads = 2", "heads = 3", r"config\] num_attention_heads 4 is no multiple of the 3 key-value heads"),
            ("attention_heads = 4", "attention_heads = 6", r"config\] hidden_size 64 is no .* 6: name head_dim"),
            ('"llama"', '"mamba"', r"config\] model_type 'mamba' is not known: use one of llama, mistral"),
            ('"llama"', "7", r"config\] model_type = 7: a text is wanted"),
            ('"llama"', '"llama"\nmlp_bias = 1', r"config\] mlp_bias = 1: true or false is wanted"),
            ('"llama"', '"llama"\ninitializer_range = "x"', r"config\] initializer_range = 'x': a number"),
            ('"llama"', '"llama"\nrope_scaling = "x"', r"config\] rope_scaling = 'x': a table"),
            ('source = "my own"', "source = 3", r'\["mine-1b"\] source = 3: a text is wanted'),
            ('source = "my own"', "other = -3", r'\["mine-1b"\] other = -3: a whole number of 0 or more'),
            ('source = "my own"', 'dtype = "fp7"', r"\[\"mine-1b\"\] dtype 'fp7' is not known: use one of fp32, bf16"),
            ('source = "my own"', "weight = 3", r'\["mine-1b"\] weight: no such field; use hub, dtype'),
            ('source = "my own"', "parameters = 5", r'\["mine-1b"\] parameters = 5: its config gives 202048 '),
            ('["mine-1b".config]', '["mine-1b".shape]', r'\["mine-1b"\] lacks its table config'),
            ('["mine-1b"]', "size = 3", r"size stands outside of a table"),
            ('["mine-1b"]', '["mine-1b"', r"no TOML: "),
        ],
    )  # fmt: skip
    def test_a_mistake_names_file_table_and_field(
        self, mine: Path, before: str, after: str, message: str
    ) -> None:
        assert before in MINE
        mine.write_text(MINE.replace(before, after, 1))
        with pytest.raises(UsageError, match=message) as raised:
            load_models(mine)
        assert str(raised.value).startswith(f"{mine}: ")

    def test_more_experts_a_token_than_there_are(self, mine: Path) -> None:
        mine.write_text(MINE.replace('"llama"', '"mixtral"\nnum_local_experts = 4\nnum_experts_per_tok = 5'))
        with pytest.raises(UsageError, match="num_experts_per_tok 5 is more than the 4 experts"):
            load_models(mine)

    def test_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone\.toml: this file of models cannot be read"):
            load_models(tmp_path / "gone.toml")

    def test_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match=r"bytes\.toml: this file of models cannot be read"):
            load_models(tmp_path / "bytes.toml")
