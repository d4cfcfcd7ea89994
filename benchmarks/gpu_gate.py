"""The gate on a real GPU: bf16 runs stored as main's baseline, then an unchanged, an eager, a half-batch, an FP8 build.

    python benchmarks/gpu_gate.py run --results results.json        on the GPU machine (needs torch and vLLM)
    python benchmarks/gpu_gate.py page results.json > docs/results/h100-gate.md

`run` goes on where an earlier call stopped (same --folder); `--only` picks variants. Answers that differ in length are
benchmarks/gpu_lengths.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reporting import driver_of, now, versions_line

from pytest_tokenpower.cli.scratch import ScratchRepository
from pytest_tokenpower.models.random_weights import write_random_model


def graphs(batch: int) -> dict[str, Any]:
    """CUDA graphs for decode steps of this batch; vLLM leaves out sizes that max_num_seqs does not reach."""
    return {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [batch],
        }
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "unchanged": graphs(32),
    "eager": {"enforce_eager": True},
    "fp8": {**graphs(32), "quantization": "fp8"},
    "half batch": {**graphs(16), "max_num_seqs": 16},
}
MEANING = {
    "baseline": "main: bf16, CUDA graphs for decode",
    "unchanged": "the same",
    "eager": "`enforce_eager=True`: no CUDA graphs",
    "fp8": '`quantization="fp8"`',
    "half batch": "`max_num_seqs=16`: the prompts run in two batches",
}
EXPECTED = {"unchanged": "passed", "eager": "regressed", "half batch": "regressed", "fp8": "improved"}
COLUMNS = (
    *("run", "exit", "rounds", "°C", "J/token", "± 95 %", "prefill", "decode", "W", "tok/s"),
    *("change", "95 % interval", "verdict"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--folder", type=Path, default=Path("/tmp/gpu-gate"))
    run.add_argument("--results", type=Path, required=True)
    run.add_argument("--model", default="llama-3.1-8b")
    run.add_argument("--baseline-runs", type=int, default=3)
    run.add_argument("--only", nargs="*")
    run.add_argument("--source", default="auto")
    page = commands.add_parser("page")
    page.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        measure(arguments)
    else:
        print(render(json.loads(arguments.results.read_text())))


def measure(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    model = write_random_model(arguments.folder / "model", arguments.model)
    print(f"{time.monotonic() - began:.0f} s: model written", flush=True)
    fresh = not (arguments.folder / "repository").exists()
    repository = ScratchRepository(arguments.folder / "repository")
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"runs": []}
    if fresh:
        test = Path(__file__).parent / "gpu_project" / "test_chat.py"
        repository.write({"test_chat.py": test.read_text(), "engine.json": json.dumps(VARIANTS["unchanged"])})

    def play(label: str, *options: str) -> dict[str, Any]:
        record = arguments.folder / "record.json"
        record.unlink(missing_ok=True)
        done = repository.pytest(
            "-q",
            "--show-capture=no",
            f"--energy-source={arguments.source}",
            f"--energy-json={record}",
            *options,
            environment={"BENCH_MODEL": str(model)},
        )
        shown = done.output[done.output.find("= FAILURES") :] if done.code == 1 else done.output[-3000:]
        print(f"--- {label}: exit {done.code}, {done.seconds:.0f} s\n{shown[-3500:]}", flush=True)
        run = {
            "label": label,
            "exit": done.code,
            "seconds": done.seconds,
            "at": now(),
            "record": json.loads(record.read_text()) if record.exists() else None,
            "output": done.output[-6000:],
        }
        results["runs"].append(run)
        arguments.results.write_text(json.dumps(results))
        return run

    stored = sum(run["label"] == "baseline" and run["exit"] == 0 for run in results["runs"])
    for number in range(stored, arguments.baseline_runs):
        repository.commit(f"commit {number + 1} of main")
        if play("baseline", "--energy-autosave")["exit"] != 0:
            sys.exit("a run of the baseline failed: nothing can be compared with it")
    surprises = []
    for name in arguments.only or VARIANTS:
        repository.branch(name.replace(" ", "-"))
        repository.write({"engine.json": json.dumps(VARIANTS[name])})
        repository.commit(name)
        if (kind := verdict_of(play(name, "--energy-baseline=main")).get("kind")) != EXPECTED[name]:
            surprises.append(f"{name}: {kind or 'no verdict'}, expected {EXPECTED[name]}")
    if surprises:
        sys.exit("; ".join(surprises))


def verdict_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict of a run's one test; empty where it has none."""
    if not run["record"]:
        return {}
    verdicts: list[dict[str, Any]] = run["record"]["measurements"][0].get("verdicts") or [{}]
    return verdicts[-1]


def mean_celsius(measurement: dict[str, Any]) -> str:
    """Return the die's mean temperature over the rounds, for people; empty where the board does not say."""
    known = [each["temperature_celsius"] for each in measurement["rounds"] if "temperature_celsius" in each]
    return f"{sum(known) / len(known):.0f}" if known else ""


def render(results: dict[str, Any]) -> str:
    first = next((run["record"] for run in results["runs"] if run["record"]), None)
    if first is None:
        sys.exit("no run of these results has a record")
    measured = first["measurements"][0]
    key = measured["key"]
    lines = [
        "# The gate on a real GPU",
        "",
        f"Board: {key.get('gpu.count')}x {key.get('gpu.name')}, {key.get('gpu.memory_gib')} GiB, power limit "
        f"{key.get('gpu.power_limit_watts')} W. Driver {driver_of(measured['facts'])}. "
        f"Provenance: {measured['provenance']}; method: {measured['method']}.  ",
        versions_line(first["versions"]),
        f"Date: {results['runs'][0]['at'][:10]}. Command: `python benchmarks/gpu_gate.py run`.  ",
        "Model: Llama 3.1 8B's architecture with random weights (normal, 0.02), bf16, vLLM in one process, "
        "32 prompts of 512 tokens, 256 new tokens each, greedy.",
        "",
        "Every row is a process of its own. The first rows are stored runs of `main` (`--energy-autosave`), the others "
        "are branches judged with `--energy-baseline=main`, limit 3 %. J/token, prefill, decode, W and tok/s are as "
        "read; the change and its interval are at a common GPU temperature.",
        "",
        *(
            f"- {label}: {meaning}"
            for label, meaning in MEANING.items()
            if any(run["label"] == label for run in results["runs"])
        ),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
    ]
    for run in results["runs"]:
        if run["record"] is None:
            lines.append(f"| {run['label']} | {run['exit']} | no record |" + " |" * (len(COLUMNS) - 3))
            continue
        one = run["record"]["measurements"][0]
        figures = one.get("figures", {})
        verdict = verdict_of(run)

        def figure(name: str, digits: int = 4, figures: dict[str, Any] = figures) -> str:
            return f"{figures[name]['value']:.{digits}g}" if name in figures else ""

        main_figure = figures.get("joules_per_token")
        lines.append(
            f"| {run['label']} | {run['exit']} | {len(one['rounds'])} | {mean_celsius(one)} | "
            f"{figure('joules_per_token')} | "
            + (f"{196 * main_figure['stderr'] / main_figure['value']:.2f} %" if main_figure else "")
            + f" | {figure('prefill_joules_per_token', 3)} | {figure('decode_joules_per_token')} | "
            f"{figure('mean_watts', 3)} | {figure('tokens_per_second')} | "
            + (f"{100 * verdict['change']:+.1f} %" if verdict.get("change") is not None else "")
            + " | "
            + (
                f"{100 * verdict['change_low']:+.1f} to {100 * verdict['change_high']:+.1f} %"
                if verdict.get("change") is not None
                else ""
            )
            + f" | {verdict.get('kind', 'stored')} |"
        )
    lines += ["", "What the failing builds printed:", ""]
    for run in results["runs"]:
        if run["exit"] == 1 and run["record"]:
            lines += ["```", f"{run['label']}: {verdict_of(run).get('message', 'no verdict')}", "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
