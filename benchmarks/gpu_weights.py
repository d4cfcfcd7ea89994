"""What a quantization makes of a model's weights: GB by dtype, as vLLM holds them once they are loaded.

python benchmarks/gpu_weights.py SUITE MODEL --out FILE       each variant of the suite, one engine after the other
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pytest_tokenpower.engines.registry import start
from pytest_tokenpower.suites.build import engine_of
from pytest_tokenpower.suites.grid import Suite

LEAN: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 64,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 64,
}


def held(tensor: Any) -> Counter[str]:
    """Return the bytes of a tensor by dtype; of one that is made of others (torchao's), of those."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum((held(getattr(tensor, name)) for name in names), Counter())
    return Counter({str(tensor.dtype).removeprefix("torch."): tensor.numel() * tensor.element_size()})


def weights(model: Any) -> dict[str, float]:
    """Return the GB of a model's weights by dtype."""
    total = sum((held(each.data) for each in model.parameters()), Counter())
    return {dtype: round(size / 1e9, 4) for dtype, size in total.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path)
    parser.add_argument("model", help="of the registry")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", type=float, default=0.3, help="of the board's, for the engine")
    arguments = parser.parse_args()
    suite = Suite.read(arguments.suite)
    folder = Path(os.environ["TOKENPOWER_WEIGHTS"]) / f"{arguments.model}-bfloat16-0"
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in suite.table.variants:
        cells = [cell for cell in suite.cells if cell.values.get("variant") == name]
        if name in found or not cells:
            continue
        spec = engine_of(suite, cells)
        options = {
            **spec.options,
            **LEAN,
            "compilation_config": {"mode": 0},
            "gpu_memory_utilization": arguments.memory,
        }
        began = time.monotonic()
        try:
            engine: Any = start("vllm", str(folder), options)
            [found[name]] = engine.llm.apply_model(weights)
            engine.close()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
        print(f"{name}: {found[name]} ({time.monotonic() - began:.0f} s)", flush=True)
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
