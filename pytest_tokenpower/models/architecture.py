"""A model's architecture: the fields of its ``config.json``, checked, and what they say of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

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
"""Bits of a quantized weight with its share of a scale: int4 one of 16 bits for 128 weights (GPTQ's and AWQ's usual
group), mxfp4 one of 8 bits for 32 (OCP Microscaling Formats 1.0). Scales of whole rows or of blocks of 128 × 128
(fp8, int8) are under 0.1 % and left out."""

_ALIASES: Mapping[str, str] = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
}


def dtype_name(dtype: str) -> str:
    """Return the short name of a dtype (``bfloat16``: ``bf16``); raises UsageError for an unknown one."""
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
    """Read the sizes in ``config``; raises UsageError that names the field that is missing, malformed or wrong."""
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
    """Read how far each layer's attention reaches back; None: to the beginning."""
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

Role = Literal["embedding", "head", "matrix", "expert", "expert bias", "other"]
"""Kinds of weights: matrices and experts are what weight quantization shrinks; other are routers, norms and biases."""


def count_weights(shape: Shape) -> Counter[Role]:
    """Count the weights of each role by arithmetic; a tied output matrix counts once, with the embedding."""
    hidden, family = shape.hidden, shape.family
    attention, vectors = (
        _count_attention(shape) if shape.latent is None else _count_latent(shape, shape.latent)
    )
    layer_norm = 2 * hidden  # Falcon's: a weight and a bias
    if family == "falcon":
        norms, last_norm = layer_norm * (2 if shape.grouped else 1), layer_norm
    else:
        norms, last_norm = hidden * (4 if family in ("gemma2", "gemma3_text") else 2), hidden
    counts = Counter[Role](
        {
            "embedding": shape.vocab * hidden,
            "head": 0 if shape.tied else shape.vocab * hidden,
            "matrix": shape.layers * attention,
            "other": shape.layers * (vectors + norms) + last_norm,
        }
    )
    experts, dense = shape.experts, shape.layers
    if experts is not None:
        sparse, number = len(experts.layers), experts.count
        dense -= sparse
        counts["expert"] = sparse * number * 3 * hidden * experts.width
        counts["other"] += sparse * number * (hidden + experts.selection_bias)  # the router
        if family == "gpt_oss":
            counts["expert bias"] = sparse * number * (2 * experts.width + hidden)
            counts["other"] += sparse * number
        if experts.shared_width:
            counts += _count_mlp(shape, experts.shared_width, sparse)
    return counts + _count_mlp(shape, shape.width, dense)


def _count_attention(shape: Shape) -> tuple[int, int]:
    """Weights of one layer's matrices, and of its biases, norms and sinks."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    vectors = (queries + 2 * keys) * shape.qkv_bias + shape.hidden * shape.output_bias
    if shape.family in ("qwen3", "qwen3_moe", "gemma3_text"):
        vectors += 2 * shape.head_dim
    if shape.family == "gpt_oss":
        vectors += shape.heads
    return 2 * shape.hidden * (queries + keys), vectors


def _count_latent(shape: Shape, latent: Latent) -> tuple[int, int]:
    hidden, queries = shape.hidden, shape.heads * (latent.plain_dim + latent.rotary_dim)
    expanded = shape.heads * (latent.plain_dim + latent.value_dim)
    matrices = hidden * (latent.cached + shape.heads * latent.value_dim) + expanded * latent.rank
    vectors = latent.cached * shape.qkv_bias + latent.rank + hidden * shape.output_bias
    if latent.query_rank is None:
        return matrices + hidden * queries, vectors
    return matrices + (hidden + queries) * latent.query_rank, vectors + latent.query_rank * (
        1 + shape.qkv_bias
    )


def _count_mlp(shape: Shape, width: int, layers: int) -> Counter[Role]:
    """Weights of so many MLPs of this width; all are gated but Falcon's."""
    inputs = 1 if shape.family == "falcon" else 2
    biases = (inputs * width + shape.hidden) * shape.mlp_bias
    return Counter({"matrix": layers * (inputs + 1) * shape.hidden * width, "other": layers * biases})


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

    @cached_property
    def sizes(self) -> Counter[Role]:
        """Number of weights of each role."""
        return count_weights(self.shape)

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
        """Return the checkpoint's ``config.json``."""
        family = self.shape.family
        null = {name: None for name, families in _NULL.items() if family in families}
        return {"architectures": [FAMILIES[family]], **null, **self.config, "dtype": dtype, "use_cache": True}
