"""What a run and a test are set to: options, ini values and limits, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_tokenpower.core.denominators import PER, figure_per
from pytest_tokenpower.errors import UsageError

if TYPE_CHECKING:
    from pytest_tokenpower.core.types import Scope


DEFAULT_MIN_ROUNDS = 6

DEFAULT_MAX_ROUNDS = 30

DEFAULT_MAX_SECONDS = 120.0


class Limits(NamedTuple):
    """The limits that a test declares with ``@pytest.mark.power_budget``; None: not limited.

    ``per`` is the denominator (core.denominators.PER) by which it is compared; None: it follows from the counts.
    ``prefix_cache``: prompts that come from a prefix cache are meant. ``quality`` is a floor, all others are ceilings;
    ``ttft_ms`` and ``tpot_ms`` of the time that 90 of 100 requests stay within, to the first token and for each further
    one.
    """

    joules_per_token: float | None = None
    joules_per_prompt_token: float | None = None
    joules_per_total_token: float | None = None
    joules_per_response: float | None = None
    joules: float | None = None
    mean_watts: float | None = None
    peak_watts: float | None = None
    regression: float | None = None
    min_rounds: int = DEFAULT_MIN_ROUNDS
    max_rounds: int = DEFAULT_MAX_ROUNDS
    max_seconds: float = DEFAULT_MAX_SECONDS
    key_ignore: tuple[str, ...] = ()
    per: str | None = None
    prefix_cache: bool = False
    quality: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def ceilings(self) -> Mapping[str, float]:
        """The absolute limits that are set, by the name of their figure; that of the quality is a floor."""
        values = {name: getattr(self, name) for name in CEILINGS}
        for name, figure in LATENCIES.items():
            limit = getattr(self, name)
            values[figure] = None if limit is None else limit / 1000
        return {name: value for name, value in values.items() if value is not None}


CEILINGS = (*map(figure_per, PER), "joules", "mean_watts", "peak_watts", "quality")

HELD_AS_READ = frozenset({"peak_watts", "quality"})
"""Limits of what does not scatter, or is a maximum: without a p-value they are no members of the run's family."""

LATENCIES = {"ttft_ms": "ttft_p90_seconds", "tpot_ms": "tpot_p90_seconds"}
"""Ceilings in milliseconds, and the figure that each limits."""

Severity = Literal["warn", "fail"]

CHILD_VARIABLE = "PYTEST_TOKENPOWER_CHILD"
"""Set in a pytest run that another one has started: it measures, and stores, compares and starts nothing itself."""

EVENTS_VARIABLE = "PYTEST_TOKENPOWER_EVENTS"
"""The file that a run tells of its suites' cells as it goes along."""

SOAK_VARIABLE = "PYTEST_TOKENPOWER_SOAK"
"""The soak that `tokenpower soak` has a child run do, as JSON (suites.soak.SoakAsked)."""

FOREIGN_TREE_VARIABLE = "PYTEST_TOKENPOWER_FOREIGN_TREE"
"""The work tree that a child run must import nothing from."""

LOADED_VARIABLE = "PYTEST_TOKENPOWER_LOADED"
"""The file into which a child run writes what it has imported from there all the same."""

DEFAULT_REGRESSION = 0.03

DEFAULT_ALPHA = 0.01
"""How often a run of identical code may fail, over all the ways in which it can."""

MOST_ALPHA = 0.025
"""The tail of the printed 95 % intervals: what has failed or improved excludes 0."""

DEFAULT_LENGTH_TOLERANCE = 0.10
"""How far token counts may lie apart, as a share, to be compared at equal lengths."""

DEFAULT_WARMUP_ROUNDS = 2

DEFAULT_BASELINE_RUNS = 5


class ReportTarget(NamedTuple):
    """A report to be written: in which format (reporting/formats.py), and where."""

    format: str
    path: Path


class Factors(NamedTuple):
    """From kilowatt-hours to money and carbon; None: not asked for. ``carbon_source`` says where the intensity is from.

    ``price`` is in ``currency`` per kWh, ``carbon`` in gCO2e per kWh, ``pue`` the data centre's total over its IT
    energy. ``token_prices`` are what an API charges, in ``currency`` per million input and per million output tokens.
    """

    price: float | None = None
    currency: str = ""
    carbon: float | None = None
    carbon_source: str = ""
    pue: float | None = None
    token_prices: tuple[float, float] | None = None

    def __bool__(self) -> bool:
        """Whether anything is to be worked out."""
        return self.priced or self.carbon is not None

    @property
    def priced(self) -> bool:
        """Whether any measurement may have a cost in money."""
        return self.price is not None or self.token_prices is not None


NO_FACTORS = Factors()


class Settings(NamedTuple):
    """What the command line and the ini file ask for; the defaults are those of a script, which has neither.

    ``given`` are the options as a record keeps them.
    """

    disabled: bool = False
    source: str = "auto"
    scope: Scope | None = None
    save: str | None = None
    autosave: bool = False
    storage: Path | None = None
    json: Path | None = None
    record: Path | None = None
    reports: tuple[ReportTarget, ...] = ()
    baselines: tuple[str, ...] = ()
    baselines_of_ini: bool = False
    baseline_runs: int = DEFAULT_BASELINE_RUNS
    rerun_baseline: bool = False
    restart_seconds: float = 0.0
    require_hardware: bool = False
    missing_baseline: Severity = "warn"
    inconclusive: Severity = "warn"
    key_ignore: tuple[str, ...] = ()
    regression: float = DEFAULT_REGRESSION
    alpha: float = DEFAULT_ALPHA
    length_tolerance: float = DEFAULT_LENGTH_TOLERANCE
    warmup_rounds: int = DEFAULT_WARMUP_ROUNDS
    only: bool = False
    skip: bool = False
    given: tuple[str, ...] = ()
    factors: Factors = NO_FACTORS
    resume: bool = False
    simulated_engines: bool = False

    @property
    def stores(self) -> bool:
        """Whether this run is to be stored."""
        return self.autosave or self.save is not None

    @property
    def restarts(self) -> bool:
        """Whether doubtful comparisons with stored runs are to be restarted; a replay has nothing to restart."""
        return (
            self.restart_seconds > 0
            and bool(self.baselines)
            and not self.rerun_baseline
            and not self.source.startswith("replay:")
        )


def fraction(name: str | None, value: Any) -> float:
    """Return a share, ``"3%"`` or ``0.03``, above 0 and at most 1000 %, as a fraction; errors begin with ``name``."""
    where = f"{name}={value}: " if name else ""
    number: float | None = None
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", value)):
        try:
            number = float(match[1]) / (100 if match[2] else 1)
        except ValueError:
            number = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    if number is None or not 0 < number <= 10:
        raise UsageError(f"{where}must be a share such as '3%' or 0.03")
    if number >= 1 and not (isinstance(value, str) and "%" in value):
        raise UsageError(f"{where}is {number:.0%}: write '{number:g}%' for {number:g} percent")
    return number
