"""A faked powercap tree, for RAPL."""

from __future__ import annotations

from pathlib import Path

from pytest_tokenpower.meters.adapters.rapl import RaplMeter
from pytest_tokenpower.meters.clock import Clock

RANGE_UJ = 262_143_328_850


class Machine:
    """A powercap tree whose counters the test moves, on a clock that the test moves."""

    def __init__(self, root: Path, *, flags: str = "fpu rdtscp") -> None:
        self.root = root / "powercap"
        self.proc = root / "proc"
        self.root.mkdir(parents=True)
        self.proc.mkdir()
        (self.proc / "cpuinfo").write_text(f"model name\t: Xeon 8480+\nflags\t\t: {flags}\n")
        self.now_ns = 10**12
        self.clock = Clock(monotonic_ns=lambda: self.now_ns, realtime_ns=lambda: self.now_ns)
        self.values: dict[str, int] = {}
        self.ranges: dict[str, int] = {}
        self.still: set[str] = set()

    def zone(
        self,
        entry: str,
        name: str,
        value_uj: int | None = None,
        *,
        range_uj: int = RANGE_UJ,
        still: bool = False,
    ) -> None:
        folder = self.root / entry
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        # No two counters of a machine have counted the same since it was switched on.
        self.values[entry] = 1_000_000 + 700_000_000 * len(self.values) if value_uj is None else value_uj
        self.ranges[entry] = range_uj
        if still:
            self.still.add(entry)
        self.write(entry)

    def write(self, entry: str) -> None:
        (self.root / entry / "energy_uj").write_text(f"{self.values[entry]}\n")

    def spend(self, joules: float, seconds: float = 0.05) -> None:
        self.now_ns += round(seconds * 1e9)
        for entry in self.values.keys() - self.still:
            self.values[entry] = (self.values[entry] + round(joules * 1e6)) % self.ranges[entry]
            self.write(entry)

    def meter(self) -> RaplMeter:
        return RaplMeter(self.root, self.proc, load=lambda: self.spend(1.0))
