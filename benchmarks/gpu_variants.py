"""Phases against ground truths, and energy.compare on known changes, on a real GPU.

python benchmarks/gpu_variants.py run --results results.json      on the GPU machine (needs torch and vLLM)
python benchmarks/gpu_variants.py page results.json > docs/results/h100-variants.md
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reporting import driver_of, versions_line

from pytest_tokenpower.cli.scratch import ScratchRepository
from pytest_tokenpower.models import write_random_model

GOAL_PHASES = 0.03
NEW_TOKENS, EXTRA_SHARES = 256, {0: "A/A", 3: "+3 of 256 steps", 7: "+7 of 256 steps"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--folder", type=Path, default=Path("/tmp/gpu-gate"))
    run.add_argument("--results", type=Path, required=True)
    run.add_argument("--model", default="llama-3.1-8b")
    run.add_argument("--source", default="auto")
    run.add_argument("--select", default="", help="pytest's -k: 'compare' for the comparisons alone")
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "page":
        print(render(json.loads(arguments.results.read_text())))
        return 0
    model = write_random_model(arguments.folder / "model", arguments.model)
    repository = ScratchRepository(arguments.folder / "variants")
    test = Path(__file__).parent / "gpu_project" / "test_variants.py"
    repository.write({"test_variants.py": test.read_text()})
    done = repository.pytest(
        "-v",
        "--show-capture=no",
        *(("-k", arguments.select) if arguments.select else ()),
        f"--energy-source={arguments.source}",
        f"--energy-json={arguments.results}",
        environment={"BENCH_MODEL": str(model)},
        echo=True,
    )
    print(f"exit {done.code}, {done.seconds:.0f} s")
    return 0 if arguments.results.exists() else 1


def render(run: dict[str, Any]) -> str:
    tests = {one["test"].rpartition("::")[2]: one for one in run["measurements"]}
    any_one = next(iter(tests.values()))
    key = any_one["key"]
    lines = [
        "# Phases and small changes on a real GPU",
        "",
        f"Board: {key.get('gpu.count')}x {key.get('gpu.name')}, power limit {key.get('gpu.power_limit_watts')} W, "
        f"driver {driver_of(any_one['facts'])}; {any_one['provenance']} by the {any_one['method']}.  ",
        versions_line(run["versions"]),
        f"Date: {run['created'][:10]}. Command: `python benchmarks/gpu_variants.py run`.  ",
        "Llama 3.1 8B's architecture with random weights, bf16, vLLM in the test's process, 32 prompts of 512 tokens.",
        "",
        "## Prefill and decode against ground truths",
        "",
        "Prefill: ten prefill-only batches back to back in one window, against the prefill phase inside whole rounds. "
        "Decode: the difference between rounds of 256 and of 128 new tokens, against the decode phase of the former.",
        "",
        "| phase | inside whole rounds | ground truth | difference | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    if {"test_whole", "test_prefill_alone", "test_half_as_long"} <= set(tests):
        whole, alone, half = (
            tests[name]["figures"] for name in ("test_whole", "test_prefill_alone", "test_half_as_long")
        )
        prompts = tests["test_prefill_alone"]["rounds"][0]["prompt_tokens"]
        truth = (
            alone["joules"]["value"] / prompts * tests["test_prefill_alone"]["rounds"][0].get("repeats", 1)
        )
        found = whole["joules_per_prompt_token"]["value"]
        lines.append(_row("prefill, mJ / prompt token", 1e3 * found, 1e3 * truth))
        steps = NEW_TOKENS - NEW_TOKENS // 2
        batch = 32
        truth = (whole["joules"]["value"] - half["joules"]["value"]) / (steps * batch)
        # The first token of each response comes out of the prefill: the decode phase made the other 255.
        found = whole["decode_joules_per_token"]["value"] * NEW_TOKENS / (NEW_TOKENS - 1)
        lines.append(_row("decode, mJ / decoded token", 1e3 * found, 1e3 * truth))
    lines += [
        "",
        "## energy.compare on known changes",
        "",
        "Five ABBA blocks (20 rounds) in one process; the candidate decodes some steps more than it hands out, "
        "limit 0.5 %. The expected change is the extra steps' share of a round's energy, from the decode figure above.",
        "",
        "| candidate | expected | found | 95 % interval | measured rounds, s | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    share = (
        tests["test_whole"]["figures"]["decode_joules_per_token"]["value"]
        / tests["test_whole"]["figures"]["joules_per_token"]["value"]
        if "test_whole" in tests
        else 0.0
    )
    for extra, name in EXTRA_SHARES.items():
        one = tests.get(f"test_compare[{extra}]")
        if one is None or not one.get("verdicts"):
            continue
        verdict = one["verdicts"][0]
        seconds = sum(r["seconds"] for r in [*one["rounds"], *one["variants"]["baseline"]])
        lines.append(
            f"| {name} | {100 * share * extra / (NEW_TOKENS - 1):+.2f} % | {100 * verdict['change']:+.2f} % | "
            f"{100 * verdict['change_low']:+.2f} to {100 * verdict['change_high']:+.2f} % | {seconds:.0f} "
            f"| {verdict['kind']} |"
        )
    return "\n".join(lines)


def _row(name: str, found: float, truth: float) -> str:
    off = found / truth - 1
    met = "met" if abs(off) <= GOAL_PHASES else "NOT met"
    return f"| {name} | {found:.4g} | {truth:.4g} | {100 * off:+.1f} % | within {100 * GOAL_PHASES:.0f} %: {met} |"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
