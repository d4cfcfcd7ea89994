"""Memory of weights and key-value caches against figures worked out by hand, and the fewest GPUs by property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.models import load_models
from pytest_tokenpower.models.memory import (
    CONTEXT_TOKENS,
    GIB,
    RESERVE,
    cache_of,
    kv_bytes,
    kv_bytes_per_token,
    minimum_gpus,
    needed_bytes,
    parallel_sizes,
    weight_bytes,
    weights_of,
)
from pytest_tokenpower.models.registry import architecture

NAMES = sorted(load_models())


def test_weights_in_16_and_32_bits_count_every_parameter() -> None:
    model = architecture("llama-3.1-8b")
    assert weight_bytes(model) == weight_bytes(model, "float16") == 2 * 8_030_261_248
    assert weight_bytes(model, "float32") == 4 * 8_030_261_248


def test_quantization_leaves_embeddings_and_norms_in_bf16() -> None:
    model = architecture("llama-3.1-8b")
    kept = 2 * 128256 * 4096 + (2 * 32 + 1) * 4096
    matrices = 8_030_261_248 - kept
    assert weight_bytes(model, "fp8") == weight_bytes(model, "int8") == matrices + 2 * kept
    assert weight_bytes(model, "int4") == matrices * 33 // 64 + 2 * kept


def test_mxfp4_wants_experts() -> None:
    with pytest.raises(UsageError, match=r"llama-3\.1-8b has no experts"):
        weight_bytes(architecture("llama-3.1-8b"), "mxfp4")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama-3.1-8b", 2 * 32 * 8 * 128 * 2),
        ("falcon-7b", 2 * 32 * 1 * 64 * 2),  # one key-value head
        ("deepseek-v3", 61 * (512 + 64) * 2),  # latent: no keys, no values
        ("gemma-3-1b", 2 * 26 * 1 * 256 * 2),
    ],
)
def test_key_value_cache_of_a_token(name: str, size: int) -> None:
    model = architecture(name)
    assert kv_bytes_per_token(model) == size
    assert kv_bytes_per_token(model, "fp8") == size // 2


def test_a_window_bounds_what_a_layer_keeps() -> None:
    model = architecture(
        "gemma-3-1b"
    )  # every sixth of 26 layers reaches back to the beginning, the others 512 tokens
    assert kv_bytes(model, 512) == 512 * kv_bytes_per_token(model)
    assert kv_bytes(model, 10_000) == (4 * 10_000 + 22 * 512) * 2 * 256 * 2


@pytest.mark.parametrize("dtype", ["int4", "fp9"])
def test_a_cache_of_another_dtype(dtype: str) -> None:
    with pytest.raises(UsageError, match=dtype):
        kv_bytes_per_token(architecture("tiny"), dtype)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama-3.2-3b", [1, 2, 4, 8]),  # 24 heads, 8 for keys and values
        ("falcon-7b", [1, 71]),
        ("qwen2.5-7b", [1, 2, 4]),  # 28 heads, 4 for keys and values
        ("phi-4", [1, 2, 5, 10, 20, 40]),
    ],
)
def test_tensor_parallelism_divides_the_heads(name: str, sizes: list[int]) -> None:
    assert parallel_sizes(architecture(name)) == sizes


def test_a_key_value_head_is_not_halved() -> None:
    model = architecture("gemma-3-1b")
    for gpus in (1, 4):
        weights = -(-weight_bytes(model) // gpus)
        assert needed_bytes(model, gpus, "bf16") - weights == kv_bytes(model, CONTEXT_TOKENS)
    latent = architecture("deepseek-v3")
    weights = -(-weight_bytes(latent) // 8)
    assert needed_bytes(latent, 8, "bf16") - weights == kv_bytes(latent, CONTEXT_TOKENS)


@settings(deadline=None)  # a model's tensors are counted once, at its first turn
@given(
    st.sampled_from(NAMES),
    st.floats(1, 300),
    st.sampled_from(["bf16", "fp8", "int4"]),
)
def test_the_fewest_gpus_hold_it_and_fewer_do_not(name: str, gibibytes: float, dtype: str) -> None:
    model, memory = architecture(name), int(gibibytes * GIB)
    fewest = minimum_gpus(model, memory, dtype)
    for size in parallel_sizes(model):
        held = needed_bytes(model, size, dtype)
        assert held * size >= weight_bytes(model, dtype) + kv_bytes(model, CONTEXT_TOKENS) - size
        if size == fewest:
            assert held <= memory * (1 - RESERVE)
            return
        assert held > memory * (1 - RESERVE)
    assert fewest is None


@settings(deadline=None)  # a model's tensors are counted once, at its first turn
@given(st.sampled_from(NAMES), st.integers(1, 300))
def test_more_memory_never_wants_more_gpus(name: str, gibibytes: int) -> None:
    model = architecture(name)
    less, more = (minimum_gpus(model, size * GIB, "bf16") for size in (gibibytes, gibibytes + 1))
    assert less is None or (more is not None and more <= less)


def test_weights_outside_of_the_decoder_count() -> None:
    model = architecture("gemma-3-4b")
    assert needed_bytes(model, 1, "bf16", other=1000) == needed_bytes(model, 1, "bf16") + 2000


@pytest.mark.parametrize(
    ("quantization", "dtype", "experts", "held"),
    [
        (None, None, False, "bf16"),
        ("none", "float32", False, "fp32"),
        ("fp8", "bfloat16", False, "fp8"),
        ("awq_marlin", "half", False, "int4"),
        ("mxfp4", "auto", True, "mxfp4"),
        ("mxfp4", "auto", False, "int4"),
    ],
)
def test_weights_are_held_as_an_engines_settings_have_it(
    quantization: str | None, dtype: str | None, experts: bool, held: str
) -> None:
    assert weights_of(quantization, dtype, experts=experts) == held


def test_a_cache_is_held_in_whole_bytes() -> None:
    names = (None, "auto", "fp8_e5m2", "float16", "int8")
    assert [cache_of(name) for name in names] == ["bf16", "bf16", "fp8", "fp16", "int8"]
    with pytest.raises(UsageError, match="a key-value cache in int4: use one of fp32"):
        cache_of("int4")
