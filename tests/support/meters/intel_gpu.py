"""A faked tree of hwmon, as Intel's drivers xe and i915 make it."""

from __future__ import annotations

from pathlib import Path

from pytest_tokenpower.meters.adapters.intel_gpu import IntelGpuMeter


class Machine:
    """Cards whose counters go on by 30 J each time the meter waits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counters: dict[Path, int] = {}
        self.still: set[Path] = set()

    def chip(self, number: int, name: str, address: str | None = None, **labels: str) -> Path:
        """Return a chip; ``energy1="card"`` gives a counter with that label ("": without)."""
        folder = self.root / "hwmon" / f"hwmon{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        if address is not None:
            device = self.root / "pci" / address
            device.mkdir(parents=True, exist_ok=True)
            (device / "device").write_text("0xe20b\n")
            (folder / "device").symlink_to(device)
        for channel, label in labels.items():
            if label:
                (folder / f"{channel}_label").write_text(f"{label}\n")
            self.counters[folder / f"{channel}_input"] = 1_000_000_000 * (number + 1)
        self.move(0)
        return folder

    def move(self, joules: float = 30.0) -> None:
        for path in self.counters:
            self.counters[path] += 0 if path in self.still else round(joules * 1e6)
            path.write_text(f"{self.counters[path]}\n")

    def meter(self, **environment: str) -> IntelGpuMeter:
        return IntelGpuMeter(self.root / "hwmon", environment, pause=lambda seconds: self.move())
