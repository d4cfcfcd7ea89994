"""Llama-class architectures by name: their shapes, parameter counts and Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_tokenpower.errors import UsageError

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rotary scaling, as in the ``rope_scaling`` of its configuration."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class Architecture:
    """The shape of a Llama-class decoder; sizes in elements, counts of layers and heads.

    ``initializer_range`` is the standard deviation of random weights.
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every weight of the checkpoint, layer by layer."""
        hidden, wide = self.hidden_size, self.intermediate_size
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            yield prefix + "self_attn.q_proj.weight", (queries, hidden)
            yield prefix + "self_attn.k_proj.weight", (keys, hidden)
            yield prefix + "self_attn.v_proj.weight", (keys, hidden)
            yield prefix + "self_attn.o_proj.weight", (hidden, queries)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            yield prefix + "mlp.gate_proj.weight", (wide, hidden)
            yield prefix + "mlp.up_proj.weight", (wide, hidden)
            yield prefix + "mlp.down_proj.weight", (hidden, wide)
        yield "model.norm.weight", (hidden,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)

    @property
    def parameters(self) -> int:
        """Number of weights; a tied embedding counts once."""
        return sum(_size(shape) for _, shape in self.tensors())

    def bytes(self, dtype: str = "bfloat16") -> int:
        """Size of the weights in ``dtype``; raises UsageError for an unknown one."""
        if dtype not in DTYPE_BYTES:
            raise UsageError(f"dtype {dtype!r} of random weights: use one of {', '.join(DTYPE_BYTES)}")
        return self.parameters * DTYPE_BYTES[dtype]

    def config(self, dtype: str) -> dict[str, object]:
        """The checkpoint's ``config.json``, in the form of the hub's Llama 3 checkpoints."""
        scaling = self.rope_scaling
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": dtype,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling
            and {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            },
            "rms_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "use_cache": True,
        }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


ARCHITECTURES: Mapping[str, Architecture] = {
    known.name: known
    for known in (
        # For tests: everything is there, nothing takes time.
        Architecture("tiny", 512, 128, 352, layers=2, heads=4, kv_heads=2, head_dim=32, max_positions=2048),
        # For a CPU: small enough for two cores, deep enough that attention and matrices dominate the overhead.
        Architecture("small", 4096, 512, 1408, layers=8, heads=8, kv_heads=4, head_dim=64, max_positions=4096),
        # The shapes of meta-llama/Llama-3.2-1B and meta-llama/Llama-3.1-8B, from their config.json.
        Architecture(
            "llama-3.2-1b", 128256, 2048, 8192, layers=16, heads=32, kv_heads=8, head_dim=64,
            max_positions=131072, rope_scaling=RopeScaling(factor=32.0), tie_word_embeddings=True,
            bos_token_id=128000, eos_token_id=128001,
        ),
        Architecture(
            "llama-3.1-8b", 128256, 4096, 14336, layers=32, heads=32, kv_heads=8, head_dim=128,
            max_positions=131072, rope_scaling=RopeScaling(factor=8.0),
            bos_token_id=128000, eos_token_id=128001,
        ),
    )
}  # fmt: skip


def architecture(name: str) -> Architecture:
    """The architecture of that name; raises UsageError that lists the known ones."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise UsageError(f"unknown architecture {name!r}: use one of {', '.join(ARCHITECTURES)}") from None
