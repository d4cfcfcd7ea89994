"""What is reported: the measurements of one or more runs, each with what else is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_tokenpower.analysis.power_curves import PowerCurves
from pytest_tokenpower.core.denominators import unit_of
from pytest_tokenpower.core.records import ClaimRecord, Figure, MeasurementRecord, RunRecord, VerdictRecord
from pytest_tokenpower.core.settings import NO_FACTORS, Factors
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.gate.history import History, Series, collect, read_line
from pytest_tokenpower.gate.verdict import FAILING
from pytest_tokenpower.reporting.columns import compared_figure, status
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.identity import repository_test
from pytest_tokenpower.store.keys import differences

HISTORY_RUNS = 50
"""So many of the newest stored runs are read for a report's histories."""


@dataclass(frozen=True)
class Reported:
    """One measurement of a report, its run, the power that was drawn and the history of the test."""

    run: RunRecord
    measured: MeasurementRecord
    curves: PowerCurves | None = None
    history: History | None = None

    @property
    def test(self) -> str:
        """The test's id from the repository's top level, by which stored runs know it."""
        return repository_test(self.run.root, self.measured.test)

    @property
    def kind(self) -> str:
        """The verdict that the test is shown with; without one, how its figure came about."""
        found = status(self.measured)
        # A simulated figure is never called measured.
        return self.measured.provenance if found == "measured" else found

    @property
    def figure(self) -> Figure | None:
        """The figure that the test is compared by, in ``unit``."""
        return self.measured.figures.get(compared_figure(self.measured))

    @property
    def unit(self) -> str:
        """Joules per what, as ``J/token``."""
        return unit_of(compared_figure(self.measured))

    @property
    def failing(self) -> bool:
        """Whether the test fails by its kind of verdict."""
        return self.kind in FAILING

    @property
    def series(self) -> Series | None:
        """The stored runs that this measurement can be compared with."""
        found = () if self.history is None else self.history.series
        return next((one for one in found if not differences(one.key, self.measured.key)), None)


@dataclass(frozen=True)
class Report:
    """Everything that a page, a summary or an export is made of.

    ``no_history`` is why there is none; ``factors`` turn joules into money and carbon; ``title`` names the job that it
    is of.
    """

    runs: tuple[RunRecord, ...]
    curves: Mapping[tuple[str, str], PowerCurves] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)
    no_history: str = ""
    factors: Factors = NO_FACTORS
    title: str = ""

    def __iter__(self) -> Iterator[Reported]:
        """Each measurement, in the order of runs and tests; ``curves`` are by run id and node id."""
        for run in self.runs:
            for measured in run.measurements:
                test = repository_test(run.root, measured.test)
                yield Reported(
                    run, measured, self.curves.get((run.id, measured.test)), self.histories.get(test)
                )

    @property
    def claims(self) -> tuple[ClaimRecord, ...]:
        """The claims of all runs."""
        return tuple(claim for run in self.runs for claim in run.claims)

    @property
    def provenances(self) -> tuple[str, ...]:
        """How the numbers came about: anything but ``measured`` has to be said."""
        found = (kind for each in self for kind in each.measured.provenance.split("+"))
        return tuple(dict.fromkeys(found))


def parts_of_change(verdict: VerdictRecord) -> dict[str, tuple[float, float, float]]:
    """Return the parts of a verdict's change that are known, each with its 95 % interval: work and pace."""
    found = {"work": verdict.work, "pace": verdict.pace}
    return {name: (part.change, part.low, part.high) for name, part in found.items() if part is not None}


def histories(place: StoreContext, tests: Iterable[str]) -> tuple[dict[str, History], str]:
    """Return the stored history of each test (named from the repository's top level) that has one, or why none has."""
    found: dict[str, History] = {}
    try:
        line = read_line(place, None, HISTORY_RUNS)
    except TokenPowerError as error:
        return found, str(error)
    for test in dict.fromkeys(tests):
        try:
            found[test] = collect(place, test, line)
        except TokenPowerError:
            continue  # Nothing of this test is stored, or nothing with a level.
    return found, ""


def tests_of(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Every test of the runs, as stored runs know it."""
    return tuple(repository_test(run.root, one.test) for run in runs for one in run.measurements)
