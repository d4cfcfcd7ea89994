"""What 64 nodes for a day, and 100 runners for a year, would cost: measured small, and scaled.

    python benchmarks/fleet_scale.py [--output docs/results/fleet-scale.md]

One node of eight boards is a real feed, read as --energy-source=remote and ray do, over an hour of samples at once; a
store is filled with runs of 200 tests, pushed to a bare git repository, pulled, resolved, pruned, and read by
`tokenpower fleet`. Each cost is measured at three sizes and fitted by a line through them; what is extrapolated says
so.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
from tabulate import tabulate

sys.path.insert(0, os.fspath(Path(__file__).parent))
from store_scale import cpu_seconds, fill, key_of, make_history, name_of
from timeline_scale import resident_mb

import pytest_tokenpower
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.gate.fleet import fleets, measurements_on
from pytest_tokenpower.gate.history import read_line
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.remote import (
    LEAST_CLOCK_ERROR_NS,
    MOST_CLOCK_ERROR_NS,
    MOST_DRIFT,
    PINGS,
    POLL_S,
    Cursor,
    Feed,
    Hello,
    Piece,
    RemoteMeter,
)
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.baseline import Baseline
from pytest_tokenpower.store.git import Repository
from pytest_tokenpower.store.remote import pull, push
from pytest_tokenpower.store.retention import Retention, lines_of
from pytest_tokenpower.store.store import Store, default_store_path

OUTPUT = Path(__file__).parents[1] / "docs/results/fleet-scale.md"
NODES, BOARDS, HOURS = 64, 8, 24
RUNNERS, TESTS, DAYS = 100, 200, 365
PERIOD_NS = 20_000_000
ROUNDS = 20


class Node:
    """A node's boards: at each poll half a minute of what a real one reads, later than all before."""

    name = "node"
    poll_interval_s = 3600.0

    def __init__(self) -> None:
        self.devices = [
            Device(f"GPU-{at}", "gpu", "board", "nvml", "simulated", counter_tick_ns=100_000_000)
            for at in range(BOARDS)
        ]
        self.at_ns = 0
        self.random = np.random.default_rng(16)

    def open(self, clock: Clock) -> Sequence[Device]:
        """List the boards."""
        self.at_ns = clock.monotonic_ns() + 1
        return self.devices

    def poll(self, clock: Clock) -> Sequence[Reading]:
        """Return half a minute of each board."""
        seconds = int(POLL_S)
        t_ns = self.at_ns + PERIOD_NS * np.arange(seconds * 50)
        stamps = [self.at_ns + second * 10**9 for second in range(seconds)]
        self.at_ns += seconds * 10**9
        readings: list[Reading] = []
        for device in self.devices:
            milliwatts = self.random.integers(100_000, 700_000, len(t_ns))
            counters = [CounterReading(t, t + 3_000_000, t // 3) for t in stamps]
            readings.append(Reading(device.id, PowerSamples(t_ns, milliwatts), counters))
            readings += [
                Reading(device.id, conditions=Conditions(t, temperature_celsius=50.0, sm_clock_mhz=1980.0))
                for t in stamps
            ]
        return readings

    def close(self) -> None:
        """Nothing is open."""


class Counted:
    """The feed through the JSON of HTTP, with its bytes."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.bytes, self.requests = feed, 0, 0

    def hello(self) -> Hello:
        """Return the feed's devices."""
        return self.feed.hello()

    def now_ns(self) -> int:
        """Return the feed's clock."""
        self.requests += 1
        return self.feed.now_ns()

    def piece(self, cursor: Cursor) -> Piece:
        """Return what came, as it goes over the wire."""
        encoded = msgspec.json.encode(
            self.feed.piece(msgspec.json.decode(msgspec.json.encode(cursor), type=Cursor))
        )
        self.bytes, self.requests = self.bytes + len(encoded), self.requests + 1
        return msgspec.json.decode(encoded, type=Piece)

    def close(self) -> None:
        """Nothing is open."""


def slope(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope of the line through the costs."""
    rise, start = np.polyfit(sizes, costs, 1)
    return float(start), float(rise)


def marginal(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return what one more costs at the largest size, by the parabola through the costs."""
    bend, rise, _ = np.polyfit(sizes, costs, 2)
    return float(2 * bend * sizes[-1] + rise)


def nodes() -> tuple[list[list[str]], list[str]]:
    """Measure what a node-hour costs the driver; returns rows and remarks."""
    hours = (0.25, 0.5, 1.0)
    feed_side = Collector([Node()])
    feed = Feed(feed_side, list(feed_side.start()))
    transport = Counted(feed)
    meter = RemoteMeter("node", transport)
    driver = Collector([meter])
    driver.start()
    gc.collect()
    before_mb, before_s = resident_mb(), time.process_time()
    memory, cpu, traffic, requests = [], [], [], []
    polled = 0
    for hour in hours:
        while polled < hour * 3600 / POLL_S:
            driver.flush(0)
            polled += 1
        gc.collect()
        # Both sides of the wire live in this process: the driver's half of it is the feed's again.
        memory.append((resident_mb() - before_mb) / 2)
        cpu.append(time.process_time() - before_s)
        traffic.append(transport.bytes / 1e6)
        requests.append(transport.requests)
    driver.stop()
    feed.close()
    day = NODES * HOURS
    rows = []
    for what, unit, costs in (
        ("memory of the driver", "MB", memory),
        ("processor of both sides", "s", cpu),
        ("traffic (JSON)", "MB", traffic),
    ):
        _, rise = slope(hours, costs)
        if costs is cpu:
            rise = marginal(hours, cpu)
        rows.append(
            [
                what,
                *(f"{each:.1f} {unit}" for each in costs),
                f"{rise:.1f} {unit}",
                f"{rise * day:,.0f} {unit}",
            ]
        )
    _, mb_an_hour = slope(hours, memory)
    _, sent = slope(hours, traffic)
    _, asked = slope(hours, requests)
    busy = marginal(hours, cpu)
    remarks = [
        f"- Traffic is {sent / 3600 * 1000:.1f} kB/s a node, {sent / 3600 * NODES:.2f} MB/s for "
        f"{NODES} nodes, in",
        f"  {asked:.0f} requests an hour and node. A piece comes every {POLL_S:.0f} s, or when a round has ended.",
        f"- The driver polls each node from a thread of its own. Both sides together take "
        f"{100 * busy / 3600:.3f} % of a",
        f"  core a node; the interpreter's one lock would be full at some {3600 / busy:,.0f} nodes.",
        f"- 8 GB of timeline are full after {8000 / mb_an_hour / NODES:.0f} h of {NODES} nodes x {BOARDS} "
        "boards: a test run",
        "  forgets nothing. Beyond that a recording on each node is the design.",
        "- What a poll costs grows with what the feed keeps, an hour at most: for the processor the row has what",
        "  an hour costs then. Memory is half of what a process grows by that holds both ends.",
        f"- Clock: at least ±{LEAST_CLOCK_ERROR_NS / 1e6:g} ms is stated, three times the first bound. "
        "Between polls it grows",
        f"  by {MOST_DRIFT * POLL_S * 1e3:.0f} ms in {POLL_S:.0f} s; each poll asks {PINGS} times anew: "
        "a day makes it no worse.",
        "  Each node has its own. An edge that is off by 0.5 ms moves a window of 100 ms by 0.5 % where "
        "power steps, one",
        f"  of 1 s by 0.05 %. More than {MOST_CLOCK_ERROR_NS / 1e6:.0f} ms is refused: a path of 13 ms there and back.",
    ]
    return rows, remarks


def timed(act: Callable[[], object]) -> float:
    """Return the processor seconds that something takes, git's included: other work on the machine is none of it."""
    begun = cpu_seconds()
    act()
    return cpu_seconds() - begun


def on_boards(measured: MeasurementRecord, board: str, started: float) -> MeasurementRecord:
    """Return a measurement as one board of the pool would have given it."""
    rounds = tuple(msgspec.structs.replace(one, device_joules={board: one.joules}) for one in measured.rounds)
    return msgspec.structs.replace(measured, rounds=rounds, host=board, started=started)


RESOLVE, PRUNE, FLEET = "resolve main and find 200 tests", "list what prune keeps", "fleet (20 tests)"
GIT_MB, FILE_MB = "in git", "file"


def one_store(here: Path, size: int) -> dict[str, float]:
    """Return what a store of so many runs costs."""
    project, other, bare = here / "project", here / "other", here / "bare.git"
    commits = make_history(project, max(size // 5, 10))
    subprocess.run(["git", "clone", "--quiet", "--bare", project, bare], check=True)
    subprocess.run(["git", "clone", "--quiet", bare, other], check=True)
    repository, clone = Repository.discover(project), Repository.discover(other)
    assert repository is not None
    assert clone is not None
    store, pulled = (Store(default_store_path(each, project)) for each in (repository, clone))
    found = {FILE_MB: fill(store, commits, size, TESTS, ROUNDS)}
    found["push"] = timed(lambda: push(repository, store, os.fspath(bare), everything=True))
    found["pull"] = timed(lambda: pull(clone, pulled, os.fspath(bare)))
    assert len(pulled.entries()) == size

    def resolve() -> None:
        baseline = Baseline.resolve("main", Store(store.path), repository, folder=project)
        for test in range(TESTS):
            baseline.find(name_of(test), key_of(test, "NVIDIA H100 80GB HBM3"))

    def keep() -> None:
        fresh = Store(store.path)
        Retention(fresh, repository, 20).needed(fresh.entries(), lines_of(repository))

    def fleet() -> None:
        place = StoreContext(Store(store.path), repository, project)
        some = measurements_on(place.store, read_line(place, "main", size), "batch1")
        tests = sorted({one.test for one, _ in some})[:20]
        fleets(
            [
                (on_boards(one, f"GPU-{at % 8:08x}-0", 6 * 3600.0 * at), level)
                for at, (one, level) in enumerate(some)
                if one.test in tests
            ],
            (),
        )

    found |= {RESOLVE: timed(resolve), PRUNE: timed(keep), FLEET: timed(fleet)}
    found[GIT_MB] = sum(path.stat().st_size for path in bare.rglob("*") if path.is_file()) / 1e6
    return found


def stores() -> tuple[list[list[str]], list[str]]:
    """Measure what a stored run costs; returns rows and remarks."""
    sizes = (5, 10, 20)
    with tempfile.TemporaryDirectory(prefix="fleet-scale-") as folder:
        measured = []
        for size in sizes:
            here = Path(folder, str(size))
            here.mkdir()
            measured.append(one_store(here, size))
    one_file = measured[-1][FILE_MB]
    costs = {
        name: [each[name] for each in measured] for name in ("push", "pull", RESOLVE, PRUNE, FLEET, GIT_MB)
    }
    runs = RUNNERS * DAYS
    rows = []
    for name, each in costs.items():
        unit = "MB" if name == GIT_MB else "s"
        start, rise = slope(sizes, each)
        flat = name == RESOLVE
        year = max(each) if flat else start + rise * runs
        rows.append(
            [
                name,
                *(f"{cost:.2f} {unit}" for cost in each),
                f"{1000 * rise:.1f} {'kB' if name == GIT_MB else 'ms'}",
                f"{year:,.0f} {unit}"
                if not flat
                else f"{max(each):.1f} s (store_scale.py holds 10,000 runs to 0.5 s)",
            ]
        )
    _, packed_mb = slope(sizes, costs[GIT_MB])
    _, pushed = slope(sizes, costs["push"])
    _, pulled_s = slope(sizes, costs["pull"])
    year_h = runs * (pulled_s + pushed) / 3600
    a_pull = 2048 / one_file
    remarks = [
        f"- One run of {TESTS} tests with {ROUNDS} rounds is a file of {one_file:.1f} MB and {packed_mb:.2f} MB "
        "in git. A run a",
        f"  day of {RUNNERS} runners is {runs:,} in a year: {runs * one_file / 1e3:,.0f} GB of files,",
        f"  {runs * packed_mb / 1e3:,.0f} GB in git, {year_h:.0f} processor hours to push all and to pull all once.",
        f"- A job pushes its own run: {pushed:.2f} s and {packed_mb:.2f} MB, and a listing of the branch's names. "
        "A new clone",
        "  that pulls everything is the bound: a pull takes at most 2 GiB at once, which is",
        f"  {a_pull:,.0f} of these runs, in {a_pull * pulled_s / 60:.0f} min.",
        "- So the design changes at about a thousand runs of 200 tests on one branch. "
        "Below, everybody pulls all. Above, a",
        "  job keeps its store (a cache, or a disk of the pool), pulls what is new and prunes; "
        "the branch holds more than one",
        "  pull takes, newest first. Beyond ten thousand a month a folder on a file server (`--energy-storage`) is the",
        "  better store: git's history keeps what prune removes.",
    ]
    return rows, remarks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    begun = time.perf_counter()
    node_rows, node_remarks = nodes()
    store_rows, store_remarks = stores()
    node_table = tabulate(
        node_rows,
        headers=(
            "one node",
            "15 min",
            "30 min",
            "1 h",
            "an hour",
            f"{NODES} nodes, {HOURS} h (extrapolated)",
        ),
        tablefmt="github",
        disable_numparse=True,
    )
    store_table = tabulate(
        store_rows,
        headers=(
            "one store",
            "5 runs",
            "10 runs",
            "20 runs",
            "a run",
            f"{RUNNERS * DAYS:,} runs (extrapolated)",
        ),
        tablefmt="github",
        disable_numparse=True,
    )
    page = f"""# Many nodes, many runners

Written by `benchmarks/fleet_scale.py` on {datetime.now(timezone.utc):%Y-%m-%d} in {time.perf_counter() - begun:.0f} s:
pytest-tokenpower {pytest_tokenpower.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores that other
work shared; times are the processor's. Real code at the three sizes of each row, a line through them, and what that
line says of the size in question. Nothing here was run on {NODES} nodes or for a year: the second table is stretched
from 20 runs to {RUNNERS * DAYS:,}, and is good for the order of magnitude.

## {NODES} nodes of {BOARDS} boards for {HOURS} hours

{node_table}

{chr(10).join(node_remarks)}

## {RUNNERS} runners, {TESTS} tests, {DAYS} days

{store_table}

{chr(10).join(store_remarks)}
"""
    given.output.write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
