"""Runs of identical code, and folders of kept records."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pytest_tokenpower.core.records import GateRecord, RunRecord, encode_run
from tests.support.histories import at_level
from tests.support.repositories import TEST, run

GATE = GateRecord(regression=0.03, baseline_runs=5)


def identical(
    runs: int = 8, *, run_sd: float = 0.002, gate: GateRecord | None = GATE, tests: tuple[str, ...] = (TEST,)
) -> list[RunRecord]:
    """Run of identical code, as the plugin records them."""
    return [
        run(
            number,
            *(
                msgspec.structs.replace(at_level(test=test, seed=number, run_sd=run_sd), gate=gate)
                for test in tests
            ),
        )
        for number in range(runs)
    ]


def keep(folder: Path, runs: list[RunRecord]) -> str:
    folder.mkdir()
    for number, record in enumerate(runs):
        (folder / f"noise-{number}.json").write_bytes(encode_run(record))
    return f"--from={folder}"
