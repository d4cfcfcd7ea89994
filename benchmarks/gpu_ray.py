"""The telemetry actors of a two-node Ray cluster against NVML read directly, in the same windows, on two real boards.

    python benchmarks/gpu_ray.py run --out results --parts products          two GPUs of one host, Ray and torch
    python benchmarks/gpu_ray.py run --out results --parts ray mp            and vLLM
    python benchmarks/gpu_ray.py run --out results --parts products --fake   two simulated boards, no engine
    python benchmarks/gpu_ray.py page results > docs/results/ray-tp2.md

`run` starts a head and a second raylet on this host, each with a GPU of its own (CUDA_VISIBLE_DEVICES), and pytest for
each part. Meanwhile this process reads both boards through NVML itself, as --energy-source=nvml does, and afterwards
evaluates the rounds' windows once more. `weights` among the parts only writes the checkpoint, for a later call. At
--seconds all is stopped; a part that cannot be done by then is not begun.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reporting import Results, driver_of, logger, now, table, versions_line

from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.records import RunRecord, decode_run
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.sources import start
from pytest_tokenpower.runner.telemetry import AFTER_NS, TelemetrySession

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "benchmarks" / "gpu_project"
GOAL = 0.005

PARTS = ("weights", "products", "ray", "mp")
LEAST_S = {"weights": 30.0, "products": 35.0, "ray": 100.0, "mp": 75.0}
"""With less time left a part is not begun."""

PATIENCE_S = 8.0
"""What an interrupted pytest may take to write its record."""

SETTINGS = {
    # Multicast over NVLink can put GPUs that others share out of service.
    **{"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"},
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # The collector's thread runs when the workers of mp are started.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A machine whose memory grows as it is used looks full, and Ray would end its workers.
    "RAY_memory_monitor_refresh_ms": "0",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Of every process: raylets and workers have the environment of this one."""

ENGINE = {
    "tensor_parallel_size": 2,
    # Each worker sees one board, so that they cannot look for the other's memory.
    "disable_custom_all_reduce": True,
    "compilation_config": {
        **{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [32]}
    },
}
WATTS = (300, 500)
"""Of the simulated boards."""

MEANING = {
    "products": "no engine: matrix products by a Ray actor on each node, half as many on the second",
    "ray": 'vLLM, tensor parallel over both nodes: `tensor_parallel_size=2, distributed_executor_backend="ray"`',
    "mp": 'vLLM without Ray, for context: `distributed_executor_backend="mp"`, by `--energy-source=nvml`',
}

Row = dict[str, Any]


class Bench:
    """The clock, the log and the files of a run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.fake: bool = arguments.fake
        self.model: str = arguments.model
        self.out: Path = arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.folder: Path = arguments.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        self.say = logger(self.out, self.began)
        self.deadline = self.began + arguments.seconds
        self.results = Results(self.out / "results.json")

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return float(self.deadline - time.monotonic())

    def scenario(self, name: str, boards: Sequence[int]) -> str:
        """Return the source of simulated boards that draw a steady power."""
        path = self.folder / f"{name}.json"
        listed = [
            {
                "uuid": f"GPU-{at:08d}-0000-0000-0000-000000000000",
                "ring_noise_share": 0.003,
                "power": {"points": [[0, WATTS[at]]]},
            }
            for at in boards
        ]
        path.write_text(json.dumps({"boards": listed}))
        return f"simulated:{path}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True, help="results.json and the logs are written here")
    run.add_argument("--parts", nargs="+", choices=PARTS, default=["products", "ray", "mp"])
    run.add_argument("--model", default="llama-3.2-3b")
    run.add_argument("--seconds", type=float, default=200.0)
    run.add_argument("--folder", type=Path, default=Path("/tmp/gpu-ray"), help="of the checkpoint, kept")
    run.add_argument("--fake", action="store_true", help="simulated boards, and work that sleeps")
    page = commands.add_parser("page")
    page.add_argument("results", type=Path, nargs="+", help="folders of runs; of a part the last one counts")
    arguments = parser.parse_args()
    if arguments.command == "page":
        parts: Row = {}
        for folder in arguments.results:
            parts |= json.loads((folder / "results.json").read_text())
        print(render(parts), end="")
        return 0
    if arguments.fake and arguments.parts != ["products"]:
        parser.error("--fake goes with --parts products: the others need vLLM")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    os.environ.update({**SETTINGS, "PYTHONPATH": path})
    return measure(Bench(arguments), arguments.parts)


def measure(bench: Bench, parts: Sequence[str]) -> int:
    if "weights" in parts or ({"ray", "mp"}.intersection(parts) and not bench.fake):
        from pytest_tokenpower.models.random_weights import write_random_model

        write_random_model(bench.folder / bench.model, bench.model)
        bench.results.keep("model", bench.model)
        bench.say(f"{bench.model}: weights written")
    parts = [part for part in parts if part != "weights"]
    if not parts:
        return 0
    source = bench.scenario("both", (0, 1)) if bench.fake else "nvml"
    direct = TelemetrySession(*start(source))
    bench.say(f"read directly: {', '.join(device.id for device in direct.devices)}")
    cluster: Any = None
    good = True
    try:
        if {"products", "ray"}.intersection(parts):
            cluster = start_cluster(bench)
        for part in parts:
            if bench.left < LEAST_S[part] and not bench.fake:
                bench.say(f"{part}: not begun, {bench.left:.0f} s are left")
                good = False
                continue
            if part == "mp" and cluster is not None:
                end_cluster(bench, cluster)
                cluster = None
            found = play(bench, part, cluster.address if cluster is not None else "", direct)
            bench.results.keep(part, found)
            bench.say(f"{part}: {'; '.join(summary(found)) or 'no record'}")
            good &= found["exit"] == 0 and not found["missed"]
    finally:
        if cluster is not None:
            end_cluster(bench, cluster)
        direct.collector.stop()
    return 0 if good else 1


def start_cluster(bench: Bench) -> Any:
    """Start the head and a second node, each with one board."""
    import ray
    from ray.cluster_utils import Cluster

    def node(at: int) -> Row:
        environment = {"CUDA_VISIBLE_DEVICES": str(at)}
        if bench.fake:
            environment["TOKENPOWER_SOURCE"] = bench.scenario(f"node{at}", (at,))
        return {
            **{"num_cpus": 2, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 200 << 20},
            "env_vars": environment,
        }

    cluster = Cluster(initialize_head=True, head_node_args=node(0))
    cluster.add_node(**node(1))
    bench.say(f"Ray {ray.__version__}: two nodes at {cluster.address}")
    bench.results.keep("ray version", ray.__version__)
    return cluster


def end_cluster(bench: Bench, cluster: Any) -> None:
    """End the cluster, and keep the ends of what its processes said."""
    logs = Path(cluster.head_node.get_session_dir_path(), "logs")
    with (bench.out / "ray-logs.txt").open("a") as kept:
        for path in sorted((*logs.glob("worker-*"), *logs.glob("raylet*"), *logs.glob("gcs_server.*"))):
            if path.is_file() and (text := path.read_text("utf-8", "replace").strip()):
                kept.write(f"=== {path.name}\n{text[-6000:]}\n")
    cluster.shutdown()


def play(bench: Bench, part: str, address: str, direct: TelemetrySession) -> Row:
    """Run the test of a part, and evaluate its windows by what was read directly."""
    project = bench.folder / f"project-{part}"
    project.mkdir(exist_ok=True)
    test = "test_ray_products.py" if part == "products" else "test_chat.py"
    (project / test).write_text((PROJECT / test).read_text())
    (project / "pytest.ini").write_text("[pytest]\nmarkers =\n")
    (project / "engine.json").write_text(json.dumps({**ENGINE, "distributed_executor_backend": part}))
    record_path = project / "record.json"
    record_path.unlink(missing_ok=True)
    source = "ray:simulated" if bench.fake else "nvml" if part == "mp" else "ray"
    environment = {**os.environ, "BENCH_MODEL": str(bench.folder / bench.model)}
    environment |= {"RAY_ADDRESS": address} if address else {}
    environment |= {"BENCH_FAKE": "1"} if bench.fake else {}
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "pytest_tokenpower.plugin",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"--energy-source={source}", f"--energy-json={record_path}", f"--rootdir={project}", test]
    with (bench.out / f"{part}.log").open("w") as log:
        child = subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = wait(bench, child)
    seconds = time.monotonic() - began
    found: Row = {"at": now(), "exit": code, "seconds": seconds, "source": source, "missed": False}
    if not record_path.exists():
        return {**found, "record": None}
    record = decode_run(record_path.read_bytes(), source=str(record_path))
    found["record"] = json.loads(record_path.read_text())
    found["direct"] = directly(record, direct)
    rows = compared(found)
    found["missed"] = len(rows) != len(direct.devices) + 1 or any(
        abs(row["difference"]) > GOAL for row in rows.values()
    )
    return found


def wait(bench: Bench, child: subprocess.Popen[Any]) -> int:
    """Wait for pytest; interrupt it shortly before the end, and at the end kill it and all that it started."""
    with suppress(subprocess.TimeoutExpired):
        return child.wait(max(bench.left - PATIENCE_S, 1.0))
    bench.say("the time is over")
    child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        return child.wait(max(bench.left, 1.0))
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def directly(record: RunRecord, direct: TelemetrySession) -> list[Row]:
    """Energy of each round of a run, as this process has read it."""
    rounds = [one for measurement in record.measurements for one in measurement.rounds]
    windows = [
        RoundWindow(
            one.start_ns,
            one.start_ns + round(one.seconds * 1e9),
            TokenCount(one.prompt_tokens, one.generated_tokens, one.responses),
        )
        for one in rounds
    ]
    if not windows:
        return []
    direct.collector.flush(windows[-1].end_ns + AFTER_NS)
    # Of all boards, whatever processes this one takes for its own.
    records = round_records(direct.collector.timeline, direct.devices, windows)
    return [{"boards": one.device_joules, "stderr": one.stderr_joules} for one in records]


def compared(found: Mapping[str, Any]) -> dict[str, Row]:
    """Hold the run's joules against those read directly, for each board and for both together.

    Rounds that a guard of the run dropped are left out.
    """
    pairs = [
        (one, other)
        for one, other in zip(rounds_of(found["record"]), found.get("direct", ()), strict=True)
        if not one.get("reasons") and one.get("joules") is not None
    ]
    if not pairs:
        return {}
    boards = sorted(pairs[0][0]["device_joules"])
    rows: dict[str, Row] = {}
    for name, members in (*((board, [board]) for board in boards), ("both", boards)):
        ours = [sum(one["device_joules"][board] for board in members) for one, _ in pairs]
        theirs = [sum(other["boards"][board] for board in members) for _, other in pairs]
        each = [a / b - 1 for a, b in zip(ours, theirs, strict=True)]
        rows[name] = {
            "rounds": len(pairs),
            "joules": statistics.mean(ours),
            "direct": statistics.mean(theirs),
            "difference": sum(ours) / sum(theirs) - 1,
            "spread": statistics.stdev(each) if len(each) > 1 else math.nan,
            "largest": max(each, key=abs),
        }
    return rows


def rounds_of(record: Mapping[str, Any] | None) -> list[Row]:
    """Return all rounds of a run's record."""
    return [one for each in (record or {}).get("measurements", ()) for one in each["rounds"]]


def summary(found: Mapping[str, Any]) -> list[str]:
    """Return the comparison in short."""
    return [
        f"{name[:12]} {row['joules']:.2f} J, directly {row['direct']:.2f} J: {100 * row['difference']:+.3f} %"
        for name, row in compared(found).items()
    ]


# --- the page


def render(parts: Mapping[str, Any]) -> str:
    """Write the page of the results."""
    runs = {name: parts[name] for name in MEANING if rounds_of(parts.get(name, {}).get("record"))}
    if not runs:
        raise SystemExit("these results have no run with a record")
    first = next(iter(runs.values()))
    measured = {name: run["record"]["measurements"][0] for name, run in runs.items()}
    one = next(iter(measured.values()))
    key = one["key"]
    lines = [
        "# Two Ray nodes with a GPU each",
        "",
        f"Boards: {key.get('gpu.count')}x {key.get('gpu.name')} of one host. Driver {driver_of(one['facts'])}, "
        f"Ray {parts.get('ray version', 'none')}. Provenance: {one['provenance']}.  ",
        versions_line(runs.get("ray", first)["record"]["versions"]),
        f"Date: {first['at'][:10]}. Command: `python benchmarks/gpu_ray.py run`.",
        "",
        "A Ray cluster of two raylets on one host, each with one of its two GPUs. pytest measures with "
        "`--energy-source=ray`: a telemetry actor on each node reads that node's board. In the same rounds another "
        "process reads both boards through NVML, as `--energy-source=nvml` does on one machine, and evaluates the "
        f"same windows on its own. The goal is that the two agree within {100 * GOAL:g} %.",
        "",
        *(f"- *{name}*: {MEANING[name]}." for name in runs),
        "",
    ]
    rows: list[tuple[object, ...]] = []
    for name, run in runs.items():
        nodes = {
            fact.rpartition(".")[0]: str(value)
            for fact, value in measured[name]["facts"].items()
            if fact.endswith(".node")
        }
        for board, row in compared(run).items():
            node = next((value for fact, value in nodes.items() if board in fact), "")
            rows.append(
                (
                    name,
                    board[:12] if board != "both" else board,
                    node.rpartition("#")[2],
                    row["rounds"],
                    f"{row['joules']:.2f}",
                    f"{row['direct']:.2f}",
                    f"{100 * row['difference']:+.3f} %",
                    f"{100 * row['spread']:.3f} %",
                    f"{100 * row['largest']:+.3f} %",
                    "met" if abs(row["difference"]) <= GOAL else "MISSED",
                )
            )
    head = (
        "part | board | node | rounds | J per round | read directly | difference | its spread (SD) by round | "
        "largest of a round | goal"
    )
    lines += table(head, rows)
    lines += [
        "The difference is that of all rounds together. Both read the same boards, so that it shows what the actors, "
        "the alignment of clocks and the way over Ray add, and not what NVML itself is off by.",
        "",
        "## What the tests saw",
        "",
    ]
    rows = []
    for name, each in measured.items():
        figures = each.get("figures", {})

        def figure(of: str, digits: int, figures: Mapping[str, Any] = figures) -> str:
            return f"{figures[of]['value']:.{digits}g}" if of in figures else ""

        rows.append(
            (
                name,
                runs[name]["source"],
                runs[name]["exit"],
                len(each["rounds"]),
                sum(bool(part.get("reasons")) for part in each["rounds"]),
                figure("joules_per_token", 4),
                figure("tokens_per_second", 4),
                figure("mean_watts", 4),
                figure("power_imbalance", 3),
                figure("node_imbalance", 3),
                f"{runs[name]['seconds']:.0f} s",
            )
        )
    lines += table(
        "part | source | pytest's exit | rounds | of them dropped | J/token | tok/s | W | imbalance of boards | "
        "of nodes | took",
        rows,
    )
    if "products" in runs:
        lines += ["In *products* a matrix product counts as a token.", ""]
    if {"ray", "mp"}.intersection(runs):
        lines += [
            f"The model, {parts.get('model')}, has random weights (normal, 0.02) in bf16; 32 prompts of 512 tokens, "
            "256 new tokens each, greedy, CUDA graphs for decode, no custom all-reduce.",
            "",
        ]
    lines += [f"- {name}: not run." for name in MEANING if name not in runs]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
