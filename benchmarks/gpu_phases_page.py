"""The page of benchmarks/gpu_phases.py: truths, differences and tables, from its results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpu_phases_long import arrivals, long_prompts
from gpu_phases_truths import burst, mixed, pure
from gpu_phases_windows import Row, conditions, each, rounds
from reporting import table, versions_line

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
    """Return the whole page; what was not measured is left out, or said to be missing."""
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
        + deepspeed_mii(parts)
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
        f"Date: {' and '.join(sorted({each['began'][:10] for each in all_results}))}. "
        "Command: `python benchmarks/gpu_phases.py run` (with `--only` and the names below; and `run --tp2`). Each "
        "engine is one process on one machine: what differs between processes and between boards is in no ± of this "
        "page.",
        "",
        *lines,
        "",
    ]


# --- engines with a process of their own


def deployed(parts: Row) -> list[str]:
    """Return the phases of vLLM as it is deployed, estimated from outside, against truths by difference."""
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
        found, lambda one: one["phases"].get("decode", [math.nan])[0] / (one["tokens"][1] - one["tokens"][2])
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


# --- an engine that was run by a test of its own

MII_TEST = """
```python
STATE = {"memory_config": {"mode": "allocate", "size": 512}, "max_ragged_batch_size": budget}


@pytest.mark.parametrize("budget", [768, 8192])
def test_isolated(energy, budget):
    spec = EngineSpec("deepspeed-mii", MODEL, inference_engine_config={"state_manager": STATE})
    energy.run(spec, FixedShape(8, 512, 64))
```
"""


def deepspeed_mii(parts: Row) -> list[str]:
    """Tell what a test said of DeepSpeed-MII, and what else was seen of it."""
    found, probe = parts.get("deepspeed-mii tests"), parts.get("deepspeed-mii probe")
    if found is None or probe is None:
        return []
    tests: Row = found["tests"]
    first = next(iter(tests.values()))
    head = (
        "test | J / generated token | prefill, mJ / prompt token | decode, mJ / decoded token | W | tokens/s | "
        "in mixed steps | rounds"
    )
    rows = []
    for name, one in tests.items():
        figures = one["figures"]
        decoded = one["key"]["generated_tokens"] - one["key"]["responses"]
        good = sum(not each["reasons"] for each in one["rounds"])
        cells = [
            name,
            f"{figures['joules_per_token']['value']:.4f} ± {figures['joules_per_token']['stderr']:.4f}",
            f"{1e3 * figures['joules_per_prompt_token']['value']:.2f}",
            f"{1e3 * figures['decode_joules']['value'] / decoded:.0f}",
            f"{figures['mean_watts']['value']:.0f}",
            f"{figures['tokens_per_second']['value']:.0f}",
            f"{one['facts'].get('phases.mixed_share', 0):.0%}",
            f"{good} of {len(one['rounds'])}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    small, agree = probe["default budget"], probe["agrees_with_transformers_for_so_many_of_16"]
    return [
        "## DeepSpeed-MII, by a test of its own",
        "",
        versions_line(found["versions"]).rstrip()
        + f" Board: {first['key']['gpu.model']}, power limit {first['key']['gpu.power_limit_watts']} W, driver "
        f"{next(value for name, value in first['facts'].items() if name.endswith('.driver'))}; measured by the "
        f"{first['method']}. The 8B shape of Llama 3.1 without the scaling of its rotary positions, which DeepSpeed "
        "refuses; random weights. `test_in_process` is the same with `isolated=False` and MII's own settings: passes "
        "of 768 tokens and a KV cache over all of the GPU but 1 GB.",
        MII_TEST,
        *table(head, rows),
        f"With a 1B model: {small['steps']} exact steps, {small['counts'][0]} prompt and {small['counts'][1]} decoded "
        f"tokens in them, {100 * small['in_steps']:.0f} % of a round's time; the passes begin "
        f"{', '.join(f'{p} + {d}' for p, d in small['begin'][:3])} tokens. Rounds repeat token for token; two engines "
        f"stand side by side; {probe['memory_mib']['open']} MiB are held and {probe['memory_mib']['closed']} after "
        f"`close`. Of 16 greedy tokens a prompt {', '.join(map(str, agree))} agree with transformers: at a budget of "
        f"8192 its own agree with those at 768 in {', '.join(map(str, probe['same_tokens_as_default_budget']))} of 64. "
        "What makes them differ was not looked into; it is no matter of energy.",
        "",
    ]
