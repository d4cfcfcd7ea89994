"""What stored tests say of each other's noise: the one source of the verdict's prior."""

from __future__ import annotations

from pytest_tokenpower.analysis.rounds import log_joules_per_token
from pytest_tokenpower.core.denominators import denominator
from pytest_tokenpower.core.records import MeasurementRecord
from pytest_tokenpower.stats.prior import DEFAULT_PRIOR, Prior, learn_priors
from pytest_tokenpower.stats.runs import summarise_runs
from pytest_tokenpower.store.baseline import ALIKE, Baseline, histories


class Priors:
    """Learns from each baseline once for each kind of machine, and remembers."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], dict[str, Prior]] = {}

    def of(self, baseline: Baseline, measurement: MeasurementRecord) -> Prior:
        """Return what is believed of a test's noise: the default, sharpened by the baseline's other tests.

        Args:
            baseline: the stored runs that are learned from, of the same kind of machine.
            measurement: of the test; its own stored runs say nothing here, the comparison takes them itself.
        """
        machine = repr([measurement.key.get(name) for name in ALIKE])
        known = (baseline.label, machine)
        if known not in self._learned:
            runs = {
                test: summarise_runs([log_joules_per_token(run.rounds, denominator(run.key)) for run in each])
                for test, each in histories(baseline, measurement.key).items()
                if len(each) > 1
            }
            self._learned[known] = learn_priors({test: runs.get(test, []) for test in (*runs, "")})
        learned = self._learned[known]
        return learned.get(baseline.identity(measurement.test), learned.get("", DEFAULT_PRIOR))
