"""The gate's errors on real boards: identical code and known waste, host-bound and GPU-bound, several boards at once.

python benchmarks/gpu_gate_rates.py run --out results         on the GPU machine (needs torch and vLLM)
python benchmarks/gpu_gate_rates.py run --out results --fake  a dry run anywhere
python benchmarks/gpu_gate_rates.py pack results more-results measured.json
python benchmarks/gpu_gate_rates.py judge                     writes docs/results, from what is packed there
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_gate_rates_run

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    gpu_gate_rates_run.add_arguments(commands.add_parser("run"))
    pack = commands.add_parser("pack")
    pack.add_argument("folders", type=Path, nargs="+", help="what each `run` wrote with --out")
    pack.add_argument("packed", type=Path)
    judge = commands.add_parser("judge")
    packed_runs = RESULTS / "data" / "h200-aa.json"
    judge.add_argument("packed", type=Path, nargs="?", default=packed_runs)
    judge.add_argument("--page", type=Path, default=RESULTS / "h200-aa.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return gpu_gate_rates_run.measure(arguments)
    # The GPU machine needs none of it.
    import gpu_gate_rates_data

    if arguments.command == "pack":
        packed = gpu_gate_rates_data.pack(arguments.folders)
        arguments.packed.write_text(json.dumps(packed, separators=(",", ":")) + "\n")
        return 0
    import gpu_gate_rates_page

    measured = gpu_gate_rates_data.Measured.read(json.loads(arguments.packed.read_text()))
    text = gpu_gate_rates_page.render(measured, everything=arguments.packed == packed_runs)
    arguments.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
