"""The page of benchmarks/gpu_phases.py: truths, differences and tables, from its results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpu_phases_long import arrivals, long_prompts
from gpu_phases_truths import burst, mixed, pure
from gpu_phases_windows import Row, conditions, each, rounds, table
from reporting import versions_line

ENGINES = {
    "vllm-bf16": "vLLM, bf16",
    "vllm-async": "vllm-async, bf16",
    "vllm-server": "vllm-server, bf16",
    "vllm-fp8": "vLLM, FP8",
    "transformers": "transformers, bf16, eager",
    "transformers-compiled": "transformers, bf16, compiled",
}

DEPLOYED = {
    "vllm-async": "vLLM with its own engine process (vllm-async)",
    "vllm-server": "vLLM's server, over HTTP",
}


def render(all_results: Sequence[Row]) -> str:
    """The whole page; what was not measured is left out, or said to be missing."""
    parts: Row = {}
    for results in all_results:
        parts |= {name: value for name, value in results.items() if name not in ("began", "seconds", "notes")}
    lines = ["# Phases, engines and two GPUs on real boards", "", *header(parts, all_results)]
    notes = [note for results in all_results for note in results.get("notes", ())]
    if notes:
        lines += ["## What fell short, and why", "", *(f"- {note}" for note in notes), ""]
    lines += (
        pure(parts)
        + long_prompts(parts)
        + arrivals(parts)
        + mixed(parts)
        + deployed(parts)
        + engines(parts)
        + tensor_parallel(parts)
    )
    return "\n".join(lines).rstrip()


def header(parts: Row, all_results: Sequence[Row]) -> list[str]:
    known: dict[str, Row] = {
        name.removesuffix(" environment"): value
        for name, value in parts.items()
        if name.endswith(" environment")
    }
    lines = []
    for kind, one in known.items():
        used = [each for each in one["devices"] if each["used"]]
        board = used[0]
        scheduled = ", each step scheduled after the last" * (one["facts"].get("async_scheduling") is False)
        lines.append(
            f"- {kind}: {len(used)}x {board['name']}, power limit {board.get('power_limit_watts')} W, driver "
            f"{board.get('driver')}; {one['provenance']}; {one['engine']} {one['version']}{scheduled}; {one['model']}, "
            f"{one['axes'].get('weights')} weights, {one['axes'].get('quantization') or one['axes'].get('dtype')}"
        )
    versions = {name: version for one in known.values() for name, version in one["versions"].items()}
    return [
        versions_line(versions),
        f"Date: {min(each.get('began', '') for each in all_results)[:10]}. "
        "Command: `python benchmarks/gpu_phases.py run` (and `run --tp2`). Each engine is one process on one machine: "
        "what differs between processes and between boards is in no ± of this page.",
        "",
        *lines,
        "",
    ]


# --- engines with a process of their own


def deployed(parts: Row) -> list[str]:
    """The phases of vLLM as it is deployed, estimated from outside, against truths by difference."""
    lines = []
    for kind, name in DEPLOYED.items():
        if rounds(parts, f"{kind} burst"):
            lines += [f"## Estimated phases against ground truths: {name}", "", *burst(parts, kind)[2:]]
    return lines


# --- engines


ENGINE_HEAD = (
    "engine | batch | J / generated token | ± 95 % | prefill, mJ / prompt token | decode, J / decoded token | W | "
    "tokens/s | SM MHz | °C | at the power limit | windows"
)


def engines(parts: Row) -> list[str]:
    lines = ["## vLLM against transformers, bf16 against FP8", ""]
    rows = []
    for batch in (1, 8, 32, 128):
        for kind, name in ENGINES.items():
            found = rounds(parts, f"{kind} batch {batch}")
            if found:
                rows.append(engine_row(name, batch, found))
    if not rows:
        return [*lines, "Not measured.", ""]
    work = next(
        one["rounds"][0]["work"] for name, one in parts.items() if " batch " in name and "tp" not in name
    )
    lines.append(
        f"The same prompts of {work['prompt']} tokens, {work['new']} new tokens each. Prefill and decode are the "
        "engine's steps alone (prefill ± standard error); J / generated token is everything, the time between and "
        "outside of them included, ± what its windows, all of one process, scatter by."
    )
    missing = [
        f"{name}, batch {batch}"
        for kind, name in ENGINES.items()
        for batch in (1, 8, 32, 128)
        if not rounds(parts, f"{kind} batch {batch}") and kind not in DEPLOYED
    ]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}.", ""]
    for kind, name in ENGINES.items():
        one = parts.get(f"{kind} environment")
        if one is not None:
            facts = ", ".join(
                f"{fact} {one['facts'][fact]}"
                for fact in ("cudagraph_mode", "cache", "compile", "attention", "max_num_batched_tokens")
                if one["facts"].get(fact) is not None
            )
            lines.append(f"- {name}: {one['engine']} {one['version']}; {facts}")
    return [*lines, "", *table(ENGINE_HEAD, rows)]


def engine_row(name: str, batch: int, found: Sequence[Row]) -> str:
    main = each(found, lambda one: one["joules"] / one["tokens"][1])
    # Student's t for 2 and 3 degrees of freedom; windows of one run only.
    t = {2: 12.7, 3: 4.3, 4: 3.18}.get(len(found), 2.6)
    prefill = each(found, lambda one: one["phases"].get("prefill", [math.nan])[0] / one["tokens"][0])
    decode = each(
        found,
        lambda one: one["phases"].get("decode", [math.nan])[0] / (one["tokens"][1] - one["tokens"][2]),
    )[0]
    speed = each(found, lambda one: one["tokens"][1] / one["seconds"])[0]
    watts, mhz, celsius, limited, *_ = conditions(found).split(" | ")
    return (
        f"| {name} | {batch} | {main[0]:.4f} | {100 * t * main[1] / main[0]:.1f} % | {1e3 * prefill[0]:.2f} ± "
        f"{1e3 * prefill[1]:.2f} | "
        f"{decode:.4f} | {watts} | {speed:.0f} | {mhz} | {celsius} | {limited} | {len(found)} |"
    )


# --- two GPUs


def shared(found: Sequence[Row], whose: str, device: str, by: str) -> float:
    """Joules of one device by the window's seconds, or by its generated tokens."""
    return each(
        found, lambda one: one[whose][device] / (one["tokens"][1] if by == "tokens" else one["seconds"])
    )[0]


def tensor_parallel(parts: Row) -> list[str]:
    lines = ["## Two GPUs: tensor parallel 2 beside 1", ""]
    rows = []
    for batch in (32, 1):
        for kind in ("tp1", "tp2"):
            found = rounds(parts, f"{kind} batch {batch}")
            if not found:
                continue
            ids = list(found[0]["devices"])
            watts = [shared(found, "devices", device, "seconds") for device in ids]
            idle = [shared(found, "others", device, "seconds") for device in found[0]["others"]]
            per = [shared(found, "devices", device, "tokens") for device in ids]
            main_cost = sum(per)
            imbalance = (
                f"{100 * (max(watts) / (sum(watts) / len(watts)) - 1):.2f} %" if len(watts) > 1 else ""
            )
            all_boards = main_cost * (sum(watts) + sum(idle)) / sum(watts)
            cells = engine_row(f"tensor parallel {kind[2:]}", batch, found).strip("| ").split(" | ")
            rows.append(
                f"| {cells[0]} | {batch} | {cells[2]} | {cells[3]} | {' + '.join(f'{value:.4f}' for value in per)} | "
                f"{' + '.join(f'{value:.0f}' for value in watts)} | {imbalance} | {cells[4]} | {cells[5]} | "
                f"{cells[7]} | {', '.join(f'{value:.0f}' for value in idle)} | {all_boards:.4f} | {cells[9]} |"
            )
    if not rows:
        return [*lines, "Not measured.", ""]
    head = (
        "engine | batch | J / generated token, all its GPUs | ± 95 % | each | W of each | most above the mean | "
        "prefill, mJ / prompt token | decode, J / decoded token | tokens/s | W of the GPU that is not used | "
        "J / generated token with it | °C"
    )
    work = next(
        found["work"]
        for name, one in parts.items()
        if name.startswith("tp1 batch")
        for found in one["rounds"]
    )
    return [
        *lines,
        f"Prompts of {work['prompt']} tokens, {work['new']} new tokens each, on one machine with two boards. A figure "
        "is that of the boards that the engine uses. Beside tensor parallel 1 the other board stands idle and is not "
        "in the figure; the column before the last adds what it drew meanwhile.",
        "",
        *table(head, rows),
    ]
