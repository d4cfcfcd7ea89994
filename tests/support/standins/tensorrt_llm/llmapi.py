"""``KvCacheConfig`` of TensorRT-LLM 1.2 (llmapi/llm_args.py), a strict pydantic model there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    enable_partial_reuse: bool = True
    dtype: str = "auto"
    tokens_per_block: int = 32
