"""Two stored states, test by test: which limit each is judged by, and what other machines' runs teach."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import GateRecord, VerdictRecord
from pytest_tokenpower.gate.compare import compare
from pytest_tokenpower.store.baseline import Baseline, histories
from pytest_tokenpower.store.store import Store
from tests.support.measurements import measured
from tests.support.repositories import run

KEY = {"provenance": "simulated", "scope": "gpu"}
ACCEPTED = VerdictRecord("passed", "main", threshold=0.1, baseline_runs=("x",), accepted=True)


@pytest.mark.parametrize("verdicts", [(), (ACCEPTED,)], ids=["without a baseline", "under an acceptance"])
def test_a_test_is_judged_by_its_own_limit(tmp_path: Path, verdicts: tuple[VerdictRecord, ...]) -> None:
    store = Store(tmp_path)
    for number in range(5):
        store.write(run(number, replace(measured("o", 1.0 + 0.0003 * number), key=KEY), name="a"))
    new = replace(measured("o", 1.025), key=KEY, gate=GateRecord(0.01, 5), verdicts=verdicts)
    store.write(run(20, new, name="b"))
    a, b = (Baseline.resolve(f"name:{name}", store, None) for name in "ab")
    [one] = compare(a, b, None).measurements
    assert (one.verdicts[0].threshold, one.verdicts[0].kind) == (0.01, "regressed")
    [one] = compare(a, b, 0.2).measurements
    assert (one.verdicts[0].threshold, one.verdicts[0].kind) == (0.2, "passed")


def test_what_is_learned_is_of_the_same_kind_of_machine_though_another_ran_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(6):
        board = "A100" if number == 5 else "H100"
        store.write(run(number, replace(measured("o", 1.0), key={**KEY, "gpu.name": board}), name="a"))
    baseline = Baseline.resolve("name:a", store, None)
    [[level]] = histories(baseline, {**KEY, "gpu.name": "H100"}).values()
    assert len(level) == 5
