"""A service as it is deployed, on a real GPU: 80 % of each prompt in the prefix cache against none of it.

python benchmarks/gpu_prefix_cache.py --results results.json      on the GPU machine (needs torch and vLLM)

The page (docs/results/h100-prefix-cache.md) is written by hand from the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytest_tokenpower.cli.scratch import ScratchRepository
from pytest_tokenpower.models import write_random_model


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/gpu-gate"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", default="llama-3.1-8b")
    arguments = parser.parse_args()
    model = write_random_model(arguments.folder / "model", arguments.model)
    repository = ScratchRepository(arguments.folder / "prefix-cache")
    test = Path(__file__).parent / "gpu_project" / "test_prefix_cache.py"
    repository.write({test.name: test.read_text()})
    done = repository.pytest(
        "-v",
        "--show-capture=no",
        f"--energy-json={arguments.results}",
        environment={"BENCH_MODEL": str(model)},
        echo=True,
    )
    print(f"exit {done.code}, {done.seconds:.0f} s")
    return 0 if arguments.results.exists() else 1


if __name__ == "__main__":
    sys.exit(main())
