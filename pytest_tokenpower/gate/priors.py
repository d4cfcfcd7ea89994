"""What stored tests say of each other's noise: the one source of what the verdict believes beforehand."""

from __future__ import annotations

from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.gate.evidence import Boards, runs_of, waiting_of
from pytest_tokenpower.stats.comparison import Run
from pytest_tokenpower.stats.learning import learn_noise
from pytest_tokenpower.stats.levels import split_levels
from pytest_tokenpower.stats.scatter import DEFAULT_NOISE, Noise
from pytest_tokenpower.store.baseline import ALIKE, Baseline, histories


class Priors:
    """Learns from each baseline once for each kind of machine, and remembers."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], dict[str, Noise]] = {}

    def of(self, baseline: Baseline, measurement: MeasurementRecord, boards: Boards) -> Noise:
        """Return what is believed of a test's noise: the default, sharpened by the baseline's other tests.

        Args:
            baseline: the stored runs that are learned from, of the same kind of machine.
            measurement: of the test; its own stored runs say nothing here, the comparison takes them itself.
            boards: what calibrations tell of the boards.
        """
        machine = repr([measurement.key.get(name) for name in ALIKE])
        known = (baseline.label, machine)
        if known not in self._learned:
            tests: dict[str, tuple[tuple[Run, ...], ...]] = {"": ()}
            every: list[MeasurementRecord] = []
            for test, levels in histories(baseline, measurement.key).items():
                ordered = [one for level in reversed(levels) for one in reversed(level)]
                if ordered:
                    sizes = [len(level) for level in reversed(levels)]
                    starts = [sum(sizes[:at]) for at in range(1, len(sizes))]
                    tests[test] = split_levels(runs_of(ordered), starts=starts)
                    every += ordered
            self._learned[known] = learn_noise(tests, waiting_of(every, boards))
        learned = self._learned[known]
        return learned.get(baseline.identity(measurement.test), learned.get("", DEFAULT_NOISE))
