"""A model's architecture: the fields of its ``config.json``, checked, and what they say of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple

from pytest_tokenpower.errors import UsageError

WEIGHT_BITS: Mapping[str, float] = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4 + 16 / 128,
    "mxfp4": 4 + 8 / 32,
}

_ALIASES: Mapping[str, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def dtype_name(dtype: str) -> str:
    """The short name of a dtype (``bfloat16``: ``bf16``); raises UsageError for an unknown one."""
    name = _ALIASES.get(dtype, dtype)
    if name not in WEIGHT_BITS:
        raise UsageError(f"dtype {dtype!r} is not known: use one of {', '.join(WEIGHT_BITS)}")
    return name


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek V2, arXiv 2405.04434): widths of what is projected and cached."""

    query_rank: int | None
    rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int

    @property
    def cached(self) -> int:
        """Values that one token leaves in one layer's cache."""
        return self.rank + self.rotary_dim


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: how many there are, a token's share, their width, and where they are."""

    count: int
    per_token: int
    width: int
    shared_width: int = 0
    layers: frozenset[int] = frozenset()
    selection_bias: bool = False


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes in elements and its counts of layers and heads; ``windows`` has an entry a layer."""

    family: str
    vocab: int
    hidden: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    experts: Experts | None = None
    latent: Latent | None = None
    grouped: bool = False
    """Falcon's second decoder: a norm each for attention and MLP."""


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The sizes in ``config``; raises UsageError that names the field that is missing, malformed or does not fit."""
    fields = _Fields(config)
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise UsageError(f"model_type {family!r} is not known: use one of {', '.join(FAMILIES)}")
    heads, hidden, layers = (
        fields.count(name) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    grouped = family == "falcon" and fields.flag("new_decoder_architecture")
    if family == "falcon" and not grouped and fields.flag("multi_query", True):
        kv_heads = 1
    else:
        kv_heads = fields.count("num_kv_heads" if family == "falcon" else "num_key_value_heads", heads)
    if heads % kv_heads:
        raise UsageError(f"num_attention_heads {heads} is no multiple of the {kv_heads} key-value heads")
    latent = _latent(fields) if family.startswith("deepseek") else None
    head_dim = fields.count("head_dim", hidden // heads or 1)
    if "head_dim" not in config and latent is None and hidden % heads:
        raise UsageError(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}: name head_dim")
    bias = family == "qwen2" or fields.flag("bias" if family == "falcon" else "attention_bias")
    return Shape(
        family,
        fields.count("vocab_size"),
        hidden,
        fields.count("ffn_hidden_size", 4 * hidden)
        if family == "falcon"
        else fields.count("intermediate_size"),
        layers,
        heads,
        kv_heads,
        head_dim,
        tied=fields.flag("tie_word_embeddings", family.startswith("gemma")),
        qkv_bias=bias,
        output_bias=bias and family != "qwen2",
        mlp_bias=fields.flag("bias" if family == "falcon" else "mlp_bias"),
        windows=_windows(family, fields, layers),
        experts=_experts(family, fields, layers),
        latent=latent,
        grouped=grouped,
    )


def _latent(fields: _Fields) -> Latent:
    return Latent(
        fields.count("q_lora_rank") if "q_lora_rank" in fields.config else None,
        fields.count("kv_lora_rank"),
        fields.count("qk_nope_head_dim"),
        fields.count("qk_rope_head_dim"),
        fields.count("v_head_dim"),
    )


def _experts(family: str, fields: _Fields, layers: int) -> Experts | None:
    everywhere = frozenset(range(layers))
    if family in ("mixtral", "gpt_oss"):
        count, width, where = fields.count("num_local_experts"), fields.count("intermediate_size"), everywhere
    elif family == "qwen3_moe":
        count, width = fields.count("num_experts"), fields.count("moe_intermediate_size")
        every = fields.count("decoder_sparse_step", 1)
        dense = fields.config.get("mlp_only_layers", ())
        where = frozenset(layer for layer in everywhere if layer not in dense and (layer + 1) % every == 0)
    elif family in ("deepseek_v2", "deepseek_v3"):
        count, width = fields.count("n_routed_experts"), fields.count("moe_intermediate_size")
        where = frozenset(range(fields.count("first_k_dense_replace", 0, least=0), layers))
    else:
        return None
    per_token = fields.count("num_experts_per_tok")
    if per_token > count:
        raise UsageError(f"num_experts_per_tok {per_token} is more than the {count} experts")
    shared = fields.count("n_shared_experts", 0, least=0) * width if family.startswith("deepseek") else 0
    return Experts(count, per_token, width, shared, where, selection_bias=family == "deepseek_v3")


def _windows(family: str, fields: _Fields, layers: int) -> tuple[int | None, ...]:
    """How far each layer's attention reaches back; None: to the beginning."""
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        first = fields.count("max_window_layers", layers, least=0)
        slides = [fields.flag("use_sliding_window") and layer >= first for layer in range(layers)]
    elif family in ("gemma2", "gpt_oss"):
        slides = [layer % 2 == 0 for layer in range(layers)]
    elif family == "gemma3_text":
        period = fields.count("sliding_window_pattern", 6)
        slides = [(layer + 1) % period != 0 for layer in range(layers)]
    else:
        slides = [family in ("mistral", "mixtral", "phi3")] * layers
    window = fields.count("sliding_window") if "sliding_window" in fields.config else None
    return tuple(window if slide else None for slide in slides)


@dataclass(frozen=True)
class _Fields:
    config: Mapping[str, Any]

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} = {value!r}: a whole number of at least {least} is wanted")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise UsageError(f"{name} = {value!r}: true or false is wanted")
        return value

    def text(self, name: str) -> str:
        value = self._get(name, None)
        if not isinstance(value, str):
            raise UsageError(f"{name} = {value!r}: a text is wanted")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.config.get(name, default)
        if value is None:
            raise UsageError(f"{name} is missing")
        return value


FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "falcon": "FalconForCausalLM",
}
"""``model_type`` of the families that are known, and the class that Hugging Face transformers has for each."""

Role = Literal[
    "embedding", "head", "matrix", "expert", "router", "norm", "norm from 1", "bias", "expert bias", "sinks"
]
"""What a tensor is: matrices and experts are what weight quantization shrinks; Gemma's norms count from 1."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Every weight of the checkpoint, layer by layer; a tied output matrix is not among them."""
    if shape.family == "falcon":
        yield from _falcon(shape)
        return
    yield Tensor("model.embed_tokens.weight", (shape.vocab, shape.hidden), "embedding")
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield _norm(shape, f"{prefix}input_layernorm", shape.hidden)
        if shape.latent is None:
            yield from _attention(shape, f"{prefix}self_attn.")
        else:
            yield from _latent_attention(shape, shape.latent, f"{prefix}self_attn.")
        yield _norm(shape, f"{prefix}post_attention_layernorm", shape.hidden)
        if shape.family in ("gemma2", "gemma3_text"):
            yield _norm(shape, f"{prefix}pre_feedforward_layernorm", shape.hidden)
            yield _norm(shape, f"{prefix}post_feedforward_layernorm", shape.hidden)
        if shape.experts is not None and layer in shape.experts.layers:
            yield from _expert_tensors(shape, prefix)
        elif shape.family == "phi3":
            yield from _linear(f"{prefix}mlp.gate_up_proj", 2 * shape.width, shape.hidden)
            yield from _linear(f"{prefix}mlp.down_proj", shape.hidden, shape.width)
        else:
            yield from _gated(f"{prefix}mlp.", shape.hidden, shape.width, shape.mlp_bias)
    yield _norm(shape, "model.norm", shape.hidden)
    if not shape.tied:
        yield Tensor("lm_head.weight", (shape.vocab, shape.hidden), "head")


def _attention(shape: Shape, prefix: str) -> Iterator[Tensor]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.family == "phi3":
        yield from _linear(f"{prefix}qkv_proj", queries + 2 * keys, shape.hidden)
    else:
        for name, out in (("q", queries), ("k", keys), ("v", keys)):
            yield from _linear(f"{prefix}{name}_proj", out, shape.hidden, shape.qkv_bias)
    yield from _linear(f"{prefix}o_proj", shape.hidden, queries, shape.output_bias)
    if shape.family in ("qwen3", "qwen3_moe", "gemma3_text"):
        yield _norm(shape, f"{prefix}q_norm", shape.head_dim)
        yield _norm(shape, f"{prefix}k_norm", shape.head_dim)
    if shape.family == "gpt_oss":
        yield Tensor(f"{prefix}sinks", (shape.heads,), "sinks")


def _latent_attention(shape: Shape, latent: Latent, prefix: str) -> Iterator[Tensor]:
    queries = shape.heads * (latent.plain_dim + latent.rotary_dim)
    if latent.query_rank is None:
        yield from _linear(f"{prefix}q_proj", queries, shape.hidden)
    else:
        yield from _linear(f"{prefix}q_a_proj", latent.query_rank, shape.hidden, shape.qkv_bias)
        yield _norm(shape, f"{prefix}q_a_layernorm", latent.query_rank)
        yield from _linear(f"{prefix}q_b_proj", queries, latent.query_rank)
    yield from _linear(f"{prefix}kv_a_proj_with_mqa", latent.cached, shape.hidden, shape.qkv_bias)
    yield _norm(shape, f"{prefix}kv_a_layernorm", latent.rank)
    yield from _linear(f"{prefix}kv_b_proj", shape.heads * (latent.plain_dim + latent.value_dim), latent.rank)
    yield from _linear(f"{prefix}o_proj", shape.hidden, shape.heads * latent.value_dim, shape.output_bias)


def _expert_tensors(shape: Shape, prefix: str) -> Iterator[Tensor]:
    experts, hidden = shape.experts, shape.hidden
    assert experts is not None
    count, width = experts.count, experts.width
    if shape.family == "gpt_oss":  # all experts of a layer in one tensor, input first
        yield Tensor(f"{prefix}mlp.router.weight", (count, hidden), "router")
        yield Tensor(f"{prefix}mlp.router.bias", (count,), "bias")
        yield Tensor(f"{prefix}mlp.experts.gate_up_proj", (count, hidden, 2 * width), "expert")
        yield Tensor(f"{prefix}mlp.experts.gate_up_proj_bias", (count, 2 * width), "expert bias")
        yield Tensor(f"{prefix}mlp.experts.down_proj", (count, width, hidden), "expert")
        yield Tensor(f"{prefix}mlp.experts.down_proj_bias", (count, hidden), "expert bias")
        return
    block, names = ("mlp", ("gate_proj", "up_proj", "down_proj"))
    if shape.family == "mixtral":
        block, names = ("block_sparse_moe", ("w1", "w3", "w2"))
    yield Tensor(f"{prefix}{block}.gate.weight", (count, hidden), "router")
    if experts.selection_bias:
        yield Tensor(f"{prefix}{block}.gate.e_score_correction_bias", (count,), "bias")
    for expert in range(count):
        for name, lengths in zip(names, ((width, hidden), (width, hidden), (hidden, width)), strict=True):
            yield Tensor(f"{prefix}{block}.experts.{expert}.{name}.weight", lengths, "expert")
    if experts.shared_width:
        yield from _gated(f"{prefix}mlp.shared_experts.", hidden, experts.shared_width, shape.mlp_bias)


def _falcon(shape: Shape) -> Iterator[Tensor]:
    hidden, width = shape.hidden, shape.width
    together = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    yield Tensor("transformer.word_embeddings.weight", (shape.vocab, hidden), "embedding")
    for layer in range(shape.layers):
        prefix = f"transformer.h.{layer}."
        for norm in ("ln_attn", "ln_mlp") if shape.grouped else ("input_layernorm",):
            yield from _layer_norm(prefix + norm, hidden)
        yield from _linear(f"{prefix}self_attention.query_key_value", together, hidden, shape.qkv_bias)
        yield from _linear(f"{prefix}self_attention.dense", hidden, hidden, shape.output_bias)
        yield from _linear(f"{prefix}mlp.dense_h_to_4h", width, hidden, shape.mlp_bias)
        yield from _linear(f"{prefix}mlp.dense_4h_to_h", hidden, width, shape.mlp_bias)
    yield from _layer_norm("transformer.ln_f", hidden)
    if not shape.tied:
        yield Tensor("lm_head.weight", (shape.vocab, hidden), "head")


def _gated(prefix: str, hidden: int, width: int, bias: bool) -> Iterator[Tensor]:
    yield from _linear(f"{prefix}gate_proj", width, hidden, bias)
    yield from _linear(f"{prefix}up_proj", width, hidden, bias)
    yield from _linear(f"{prefix}down_proj", hidden, width, bias)


def _linear(name: str, outputs: int, inputs: int, bias: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs), "matrix")
    if bias:
        yield Tensor(f"{name}.bias", (outputs,), "bias")


def _norm(shape: Shape, name: str, length: int) -> Tensor:
    return Tensor(f"{name}.weight", (length,), "norm from 1" if shape.family.startswith("gemma") else "norm")


def _layer_norm(name: str, length: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (length,), "norm")
    yield Tensor(f"{name}.bias", (length,), "bias")


DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a value in the dtypes that checkpoints are written in."""

_NULL: Mapping[str, tuple[str, ...]] = {
    "sliding_window": ("mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3"),
    "q_lora_rank": ("deepseek_v2", "deepseek_v3"),
}
"""Fields that are null in a ``config.json`` where these families do without; left out, a default would stand in."""


@dataclass(frozen=True)
class Architecture:
    """A decoder by name, with the fields of its ``config.json``; one that is null there is left out.

    Raises UsageError where a field is missing or malformed.
    """

    name: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.config.get("rope_scaling", {}), Mapping):
            raise UsageError(f"rope_scaling = {self.config['rope_scaling']!r}: a table is wanted")
        if not isinstance(self.initializer_range, float):
            raise UsageError(f"initializer_range = {self.initializer_range!r}: a number is wanted")
        _ = self.shape

    @cached_property
    def shape(self) -> Shape:
        """Its sizes."""
        return read_shape(self.config)

    @property
    def initializer_range(self) -> float:
        """Standard deviation of random weights."""
        value: float = self.config.get("initializer_range", 0.02)
        return value

    @property
    def max_positions(self) -> int | None:
        """The longest context that the configuration allows, tokens; None where it does not say."""
        return self.config.get("max_position_embeddings")

    def tensors(self) -> Iterator[Tensor]:
        """Every weight of the checkpoint, layer by layer."""
        return tensors(self.shape)

    @cached_property
    def sizes(self) -> Counter[Role]:
        """Number of weights of each role."""
        sizes: Counter[Role] = Counter()
        for tensor in self.tensors():
            sizes[tensor.role] += tensor.size
        return sizes

    @property
    def parameters(self) -> int:
        """Number of weights; a tied embedding counts once."""
        return sum(self.sizes.values())

    @property
    def active_parameters(self) -> int:
        """Weights without the experts that a token is not sent to; embeddings count as in ``parameters``.

        As Mixtral's (arXiv 2401.04088) and DeepSeek's papers count; cards that leave the input embedding out
        (gpt-oss) say less.
        """
        experts = self.shape.experts
        if experts is None:
            return self.parameters
        routed = self.sizes["expert"] + self.sizes["expert bias"]
        return self.parameters - routed * (experts.count - experts.per_token) // experts.count

    def bytes(self, dtype: str = "bfloat16") -> int:
        """Size of a checkpoint with random weights; raises UsageError for a dtype that none is written in."""
        if dtype not in DTYPE_BYTES:
            raise UsageError(f"dtype {dtype!r} of random weights: use one of {', '.join(DTYPE_BYTES)}")
        return self.parameters * DTYPE_BYTES[dtype]

    def hub_config(self, dtype: str) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        family = self.shape.family
        null = {name: None for name, families in _NULL.items() if family in families}
        return {
            "architectures": [FAMILIES[family]],
            **null,
            **self.config,
            "dtype": dtype,
            "use_cache": True,
        }
