"""How right the energy of a single short window is, on recorded telemetry of an H100, beside what others would read.

    python benchmarks/window_accuracy.py --data h100_phases.json.gz h100_vllm_aa.tgz [--output PATH]

Converts both files into recordings (docs/recording-format.md), works their windows out as `tokenpower analyse` does,
and writes tables of goal, figure, met or not. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.replay import window_records
from pytest_tokenpower.analysis.tracks import EnergyTrack, ring_track, window_energy
from pytest_tokenpower.meters.recording import Recording, read_recording

Floats = NDArray[np.float64]

OUTPUT = Path(__file__).parents[1] / "docs/results/window-accuracy.md"
DEVICE = "GPU-h100"
MOST_DISAGREEMENT = 0.002
WARM_UP = 2
"""The first rounds of a vLLM run are its warm-up, as in the plugin."""


@dataclass
class Run:
    """One recording, what is known of it beside its windows, and the goal for the spread of its prefills."""

    name: str
    title: str
    recording: Recording
    goal: float | None
    blocks: Sequence[Any] = ()
    naive: Sequence[Any] = ()
    skipped: int = 0
    track: EnergyTrack = field(init=False)

    def __post_init__(self) -> None:
        track = track_of(self.recording.timeline, self.recording.devices[0])
        assert track is not None
        self.track = track

    def edges(self, phase: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start and end of the windows of a phase, in ns."""
        edges = [(each.start_ns, each.end_ns) for each in self.recording.windows if each.phase == phase]
        start, end = np.array(edges[self.skipped :], dtype=np.int64).T
        return start, end

    def energy(self, phase: str | None) -> tuple[Floats, Floats]:
        """Joules and standard errors of the windows of a phase."""
        records = window_records(self.recording)
        found = [
            (record.joules, record.stderr_joules)
            for window, record in zip(self.recording.windows, records, strict=True)
            if window.phase == phase
        ]
        joules, stderr = np.array(found[self.skipped :], dtype=np.float64).T
        return joules, stderr


# --- conversion


def write(path: Path, data: Mapping[str, Any], windows: Iterator[dict[str, Any]]) -> Recording:
    """Return a recording from one of the data's telemetry objects."""
    with path.open("w") as out:

        def row(**fields: Any) -> None:
            out.write(json.dumps(fields) + "\n")

        row(type="recording", version=1)
        row(type="device", id=DEVICE, name="NVIDIA H100 80GB HBM3", meter="nvml", provenance="measured")
        for realtime_ns, monotonic_ns in data["clock"]:
            row(type="clock", realtime_us=realtime_ns // 1000, monotonic_ns=monotonic_ns)
        for t_us, milliwatts in data["ring"]:
            row(type="power", device=DEVICE, t_us=t_us, mw=milliwatts)
        for t0_us, t1_us, millijoules in data["counter"]:
            row(type="counter", device=DEVICE, t0_us=t0_us, t1_us=t1_us, mj=millijoules)
        for t_us, celsius, megahertz, _ in data["meta"]:
            row(
                type="conditions",
                device=DEVICE,
                t_us=t_us,
                temperature_celsius=celsius,
                sm_clock_mhz=megahertz,
            )
        for window in windows:
            row(type="window", **window)
    return read_recording(path)


def phased(name: str, edges: Sequence[int], **tokens: int) -> Iterator[dict[str, Any]]:
    """Return a round from its start, the end of its prefill and its end, and its two phases."""
    start, middle, end = edges
    yield {"name": name, "phase": None, "start_us": start, "end_us": end, **tokens}
    yield {"name": name, "phase": "prefill", "start_us": start, "end_us": middle, **tokens}
    yield {"name": name, "phase": "decode", "start_us": middle, "end_us": end, **tokens}


def plain_runs(path: Path, folder: Path) -> Iterator[Run]:
    """Llama shapes in plain PyTorch: hundreds of prefills, each followed by 2 to 64 decode steps."""
    goals = {"1b": 0.04, "8b": 0.015}
    for model, data in json.loads(gzip.decompress(path.read_bytes())).items():
        windows = (
            row
            for at, (*edges, steps) in enumerate(data["windows"])
            for row in phased(
                f"{model}[{at}]",
                edges,
                prompt_tokens=data["bs"] * data["plen"],
                generated_tokens=data["bs"] * (steps + 1),
            )
        )
        recording = write(folder / f"{model}.jsonl", data, windows)
        yield Run(model, f"{model.upper()}, PyTorch", recording, goals[model], data["blocks"], data["naive"])


def vllm_runs(path: Path, folder: Path) -> Iterator[Run]:
    """Read the runs of an 8B Llama under vLLM, 32 prompts of 512 tokens and 256 new ones, fresh processes."""
    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".json"))
        for name in names:
            member = archive.extractfile(name)
            assert member is not None
            data = json.load(member)
            windows = (
                row
                for at, one in enumerate(data["rounds"])
                for row in phased(
                    f"round[{at}]",
                    (
                        one["start_us"],
                        round(one["start_us"] + (one["first_max"] - one["m0"]) * 1e6),
                        one["end_us"],
                    ),
                    prompt_tokens=one["prompt"],
                    generated_tokens=one["tokens"],
                )
            )
            stem = Path(name).stem
            kind = data["kw"].get("quantization", "bf16")
            # The goals are for three lengths; that of an FP8 prefill is none of them.
            goal = 0.012 if kind == "bf16" else None
            recording = write(folder / f"{stem}.jsonl", data, windows)
            yield Run(stem, f"8B {kind}, vLLM, run {stem[-1]}", recording, goal, skipped=WARM_UP)


# --- figures


def spread(joules: Floats) -> float:
    """Return standard deviation over mean."""
    return float(joules.std(ddof=1) / joules.mean())


def held(joules: Floats, stderr: Floats) -> tuple[float, float]:
    """Return the share of stated 95 % intervals that hold the median of the windows around, and the next window."""
    medians = np.array(
        [np.median(np.delete(joules[max(at - 5, 0) : at + 6], min(at, 5))) for at in range(len(joules))]
    )
    near = np.abs(joules - medians) <= 1.96 * stderr
    next_ = np.abs(np.diff(joules)) <= 1.96 * np.hypot(stderr[1:], stderr[:-1])
    return float(near.mean()), float(next_.mean())


def regression(run: Run) -> tuple[float, float]:
    """Energy of one prefill and its standard error from blocks of 5 s.

    A block is long enough for the counter; its energy is its prefills' and its decode time's. No edge of a short
    window is in it.
    """
    prefill_start, prefill_end = run.edges("prefill")
    rows, joules = [], []
    for before, after, prefills, _ in run.blocks:
        inside = (prefill_start >= before[1] * 1000) & (prefill_end <= after[0] * 1000)
        seconds = (after[0] + after[1] - before[0] - before[1]) / 2e6
        rows.append((prefills, seconds - float((prefill_end - prefill_start)[inside].sum()) / 1e9))
        joules.append((after[2] - before[2]) / 1e3)
    design, energy = np.array(rows), np.array(joules)
    solution, _, _, _ = np.linalg.lstsq(design, energy, rcond=None)
    rest = energy - design @ solution
    covariance = np.linalg.inv(design.T @ design) * float(rest @ rest) / (len(energy) - 2)
    return float(solution[0]), float(np.sqrt(covariance[0, 0]))


def reconstructions(run: Run) -> dict[str, Floats]:
    """Return the prefills by the ring, from plain to what is used."""
    start, end = run.edges("prefill")
    power = run.recording.timeline.power(DEVICE)
    assert power is not None
    seconds = np.diff(power.t_ns) / 1e9
    raw = np.concatenate([[0.0], np.cumsum(power.milliwatts[1:] / 1e3 * seconds)])
    origin = int(power.t_ns[0])
    edges = [np.interp(at - origin, power.t_ns - origin, raw) for at in (start, end)]
    stepped = replace(ring_track(power), joules=raw, lag_ns=2_500_000)
    return {
        "held samples, cut linearly": run.track.scale * (edges[1] - edges[0]),
        "with steps at the edges": run.track.scale * window_energy(stepped, start, end).joules,
        "with the smoothing undone": window_energy(run.track, start, end).joules,
    }


def averaged(run: Run, t_ns: NDArray[np.int64], length_ns: int) -> Floats:
    """Return what a power reading that is the mean over ``length_ns`` would say at moments; from the ring."""
    origin = int(run.track.t_ns[0])
    knots, joules = run.track.t_ns - origin, run.track.joules
    ends, starts = (np.interp(at - origin, knots, joules) for at in (t_ns, t_ns - length_ns))
    watts: Floats = (ends - starts) / (length_ns / 1e9)
    return watts


def polled(run: Run, start_ns: int, end_ns: int, length_ns: int, period_ns: int) -> float:
    """Joules of a window by polling a reading (the mean over ``length_ns``, new each 100 ms) and trapezoids.

    The power at the edges is taken by straight lines from the polls around them.
    """
    refresh_ns = 100_000_000
    polls = np.arange(start_ns // period_ns - 2, end_ns // period_ns + 4) * period_ns
    watts = averaged(run, polls // refresh_ns * refresh_ns, length_ns)
    inside = polls[(polls > start_ns) & (polls < end_ns)]
    moments = np.concatenate([[start_ns], inside, [end_ns]])
    read = np.interp(moments - start_ns, polls - start_ns, watts)
    return float(((read[1:] + read[:-1]) / 2) @ np.diff(moments)) / 1e9


def methods(run: Run) -> dict[str, Floats]:
    """Return the prefills around which the counter was read on the spot, by each method."""
    edges = np.array([(start_us, end_us) for *_, start_us, end_us in run.naive], dtype=np.int64) * 1000
    start, end = edges.T
    counted = [(after[2] - before[2]) / 1e3 for before, after, *_ in run.naive]
    pairs = list(zip(start.tolist(), end.tolist(), strict=True))
    tenth, second = 100_000_000, 1_000_000_000
    return {
        "counter read at both edges (as ZeusMonitor does)": np.array(counted),
        "instant power, polled each 100 ms, trapezoids": np.array(
            [polled(run, *pair, 25_000_000, tenth) for pair in pairs]
        ),
        "1 s average power, polled each 100 ms, trapezoids": np.array(
            [polled(run, *pair, second, tenth) for pair in pairs]
        ),
        "1 s average power, polled each second": np.array(
            [polled(run, *pair, second, second) for pair in pairs]
        ),
        "the ring, as here": window_energy(run.track, start, end).joules,
    }


def folded(run: Run) -> list[tuple[str, float, float]]:
    """Return the ring's samples around the ends of the prefills, and what exact means of 20 ms would be there."""
    _, ends = run.edges("prefill")
    power = run.recording.timeline.power(DEVICE)
    assert power is not None
    late = (power.t_ns[None, :] - ends[:, None]) / 1e6
    watts = np.broadcast_to(power.milliwatts / 1e3, late.shape)
    usual = np.broadcast_to(np.abs(np.diff(power.t_ns, prepend=0) / 1e6 - 20) < 3, late.shape)

    def mean(low: float, high: float) -> float:
        return float(watts[(late >= low) & (late < high) & usual].mean())

    high, low = mean(-20, 0), mean(36, 44)
    return [
        (f"{at} to {at + 4} ms", mean(at, at + 4), high + (low - high) * min(max((at + 2) / 20, 0.0), 1.0))
        for at in range(-4, 40, 4)
    ]


# --- the page


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    text: str = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return text


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def page(runs: Sequence[Run]) -> tuple[str, bool]:
    """Return the page, and whether all goals are met."""
    plain = [run for run in runs if run.blocks]
    energies = {run.name: run.energy("prefill") for run in runs}
    agreements, spreads, coverages, biases, others = [], [], [], [], []
    met = True
    for run in runs:
        fit = run.track.fit
        assert fit is not None
        off = fit.agreement - 1
        met &= abs(off) <= MOST_DISAGREEMENT
        seconds = (run.track.t_ns[-1] - run.track.t_ns[0]) / 1e9
        agreements.append(
            [
                run.title,
                f"{seconds:.0f} s",
                "±0.2 %",
                f"{100 * off:+.3f} %",
                verdict(abs(off) <= MOST_DISAGREEMENT),
            ]
        )
        joules, stderr = energies[run.name]
        start, end = run.edges("prefill")
        length = float((end - start).mean()) / 1e6
        reached = run.goal is None or spread(joules) <= run.goal
        met &= reached
        spreads.append(
            [
                run.title,
                len(joules),
                f"{length:.0f} ms",
                f"{joules.mean():.1f} J",
                percent(run.goal, 1) if run.goal is not None else "-",
                percent(spread(joules)),
                verdict(reached) if run.goal is not None else "no goal",
            ]
        )
        near, next_ = held(joules, stderr)
        whole, whole_stderr = run.energy(None)
        coverages.append(
            [
                run.title,
                percent(float(np.median(stderr / joules))),
                percent(spread(joules)),
                f"{near:.0%}",
                f"{next_:.0%}",
                percent(float(np.median(whole_stderr / whole))),
                percent(spread(whole)) if run.skipped else "-",
            ]
        )
    for run in plain:
        truth, error = regression(run)
        for name, joules in reconstructions(run).items():
            biases.append(
                [
                    run.title,
                    name,
                    f"{truth:.1f} ± {error:.1f} J",
                    f"{joules.mean():.1f} J",
                    f"{100 * (joules.mean() / truth - 1):+.1f} %",
                    percent(spread(joules)),
                ]
            )
        for name, joules in methods(run).items():
            others.append(
                [
                    run.title,
                    name,
                    f"{joules.mean():.1f} J",
                    f"{100 * (joules.mean() / truth - 1):+.0f} %",
                    percent(spread(joules), 1),
                    int((joules <= 0).sum()),
                ]
            )
    pooled = np.concatenate(
        [
            np.abs(np.diff(joules)) <= 1.96 * np.hypot(stderr[1:], stderr[:-1])
            for run in runs
            if run.skipped
            for joules, stderr in [energies[run.name]]
        ]
    )
    return (
        TEXT.format(
            agreements=table(agreements, ["recording", "length", "goal", "counter over ring", ""]),
            spreads=table(spreads, ["prefills", "windows", "length", "mean", "goal", "spread (SD)", ""]),
            coverages=table(
                coverages,
                [
                    "recording",
                    "stated error",
                    "spread",
                    "median held",
                    "next window held",
                    "stated error, round",
                    "spread, round",
                ],
            ),
            pooled=f"{pooled.mean():.0%} of {len(pooled)}",
            biases=table(biases, ["prefills", "reconstruction", "blocks say", "ring says", "bias", "spread"]),
            folded=table(
                [[at, f"{read:.0f} W", f"{exact:.0f} W"] for at, read, exact in folded(plain[0])],
                ["sample stamped after the end", "read", "exact 20 ms mean"],
            ),
            others=table(others, ["prefills", "method", "mean", "against the blocks", "spread", "zero"]),
        ),
        met,
    )


TEXT = """# The energy of a short window, against recorded telemetry

Written by `benchmarks/window_accuracy.py` from two recordings of an NVIDIA H100 80GB HBM3 (driver 580.159): Llama
shapes of 1B and 8B in plain PyTorch (hundreds of prefills, each followed by 2 to 64 decode steps), and five fresh
processes of vLLM 0.26 with an 8B Llama (15 rounds of 32 prompts x 512 tokens and 256 new tokens; the first two are
warm-up). The windows go through the same code as a live run's.

## Ring against counter

The integral of the power ring and the board's own energy counter, over each whole recording.

{agreements}

## Spread of single prefills

One window each, nothing repeated and nothing averaged. What remains is the meter's error and the work's own scatter
together.

{spreads}

The FP8 prefills have no goal of their own. Run 4 spreads most because two of its thirteen prefills stalled on the
host: by the engine's own first-token times, their first chunk came 20 and 30 ms late.

## Do the stated intervals hold?

The true energy of a single window is not known: the same work scatters by itself. So each window's 95 % interval is
held against the median of the ten windows around it, and against its neighbour (with both intervals' widths); true
scatter counts against the interval in both. Where the stated error is all there is, 95 % is right.

{coverages}

The two plain recordings, where a prefill is one uninterrupted piece of work, hold 95 % or more. Under vLLM the
neighbours of all runs together hold {pooled}: there the work itself differs from round to round. The length of a
prefill says so (it varies by 2 to 12 ms, with no energy to show for it: time on the host, at idle power), and whole
rounds do: they scatter by 0.4 to 0.7 %, where the ring alone would make 0.2 to 0.4 %, and much of that is a drift
over the run. That scatter is what rounds are repeated for; the interval of a measurement comes from its rounds, not
from the meter's error alone.

## Bias, and what the board smooths

Blocks of 5 s are long enough for the counter, and no edge of a short window is in them. With some ten prefills and
decode time in varying shares, least squares gives the energy of one prefill and the power of decode. Decode power is
not constant (it is higher right after a prefill), which the stated error of the 8B figure shows.

{biases}

A ring sample is not an exact mean over its 20 ms. The samples around the ends of the 1B prefills, folded:

{folded}

The reading follows a step only gradually: the best fit is a first-order lag of 10 to 13 ms (both models, rising and
falling edges, stamps 0 to 5 ms late beside it). Cutting held samples linearly loses 10 % of an 82 ms window; steps at
the edges (and stamps taken as 2.5 ms late) bring back 6 %; undoing a lag of 11 ms (`SMOOTHING_S` in
`analysis/tracks.py`, stamps 3 ms late) the rest. The spread falls on six of the seven recordings; on the 1B prefills
it rises by 0.07 %, less than the 0.10 % to which 319 windows tell it. Prefill and decode sum to the round in any
case.

Tried and not taken, with the spread at 82 ms (2.6 % as it is): the samples two away from the edge (3.9 %, and longer
windows are needed), the mean of the two on each side (3.1 %), extrapolating up to the edge from what was before it
(4.1 %), following the lag from sample to sample (4.0 %: noise adds up, and the bias turns to +5 %), moving late
stamps halfway back to their 20 ms grid (3.4 %; better by a tenth of the spread under vLLM). On a board whose samples
were exact means, undoing the lag would read an 82 ms window 1.5 % high (simulated): half of the stated error there.

## The same windows by other methods

The 40 prefills of each model around which the counter was also read on the spot. The first method is what was really
read; the polls are emulated from the ring: *instant* is the mean over the last 25 ms, *1 s average* that over the
last second, both new each 100 ms, as the board's fields behave; CodeCarbon's default is one poll in 15 s.

{others}

Reading the counter costs 3 ms (median) to 16 ms a call on the measured path beside that. `zero` counts the windows
that a method read as 0 J. The ring's spread over 40 windows is itself known to a tenth only.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs=2, type=Path, required=True, metavar=("PHASES", "VLLM"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [*plain_runs(given.data[0], Path(folder)), *vllm_runs(given.data[1], Path(folder))]
    text, met = page(runs)
    given.output.write_text(text)
    print(text)
    print("all goals met" if met else "NOT all goals met")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
