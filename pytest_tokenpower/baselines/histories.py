"""The run-to-run history of a baseline's tests: what one test's noise can learn from the others'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_tokenpower.errors import StoreError
from pytest_tokenpower.record import Fact, MeasurementRecord

if TYPE_CHECKING:
    from pytest_tokenpower.baselines.resolve import Baseline

_ALIKE = ("provenance", "scope", "gpu.name", "cpu.name")


def histories(baseline: Baseline, key: Mapping[str, Fact]) -> dict[str, list[MeasurementRecord]]:
    """Per test the newest comparable runs under one key, on the same kind of machine as ``key``.

    At most ``baseline.limit_runs`` runs of each test. What the store cannot read is left out and stands in its
    problems.
    """
    found: dict[str, list[MeasurementRecord]] = {}
    keys: dict[str, dict[str, Fact]] = {}
    # Each run usually holds every test: twice the runs that are wanted find them, a store of thousands or not.
    for entry in baseline.entries[: 2 * baseline.limit_runs]:
        try:
            contents = baseline.store.contents(entry)
            for test, place in contents.measurements.items():
                runs = found.setdefault(test, [])
                alike = all(place.key.get(name) == key.get(name) for name in _ALIKE)
                same = keys.setdefault(test, place.key) == place.key
                if not (place.comparable and alike and same and len(runs) < baseline.limit_runs):
                    continue
                measured = baseline.store.measurement(entry, test)
                # A regression that nobody blessed is another level, not noise.
                if baseline.accepted is None or baseline.accepted.counts(
                    test, measured.verdicts, contents.run_id, entry.commit
                ):
                    runs.append(measured)
        except StoreError:
            continue
    return found
