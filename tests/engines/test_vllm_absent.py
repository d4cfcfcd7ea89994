"""What the vLLM adapter says where vLLM is not installed."""

from __future__ import annotations

import os
import sys

import pytest

from pytest_tokenpower.engines.vllm.offline import VllmEngine
from pytest_tokenpower.errors import EngineError


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    with pytest.raises(EngineError, match=r"pip install 'pytest-tokenpower\[vllm\]'"):
        VllmEngine("org/name")
    assert os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == before
