"""What was measured, as a test or a script reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_tokenpower.core.records import Figure, MeasurementRecord, RoundRecord, VerdictRecord
from pytest_tokenpower.errors import MeterError


class Quantity(float):
    """A number with its standard error: compares and computes as the number."""

    stderr: float

    def __new__(cls, figure: Figure) -> Quantity:
        """Take both from a figure of a record."""
        made = super().__new__(cls, figure.value)
        made.stderr = figure.stderr
        return made

    @property
    def value(self) -> float:
        """The number alone."""
        return float(self)

    def __repr__(self) -> str:
        return f"{float(self):.6g} ± {self.stderr:.2g}"


@dataclass(frozen=True)
class Result:
    """The figures of a measurement, its rounds, and the reasons why it is not to be trusted, where there are any.

    ``figures`` are by name (``joules_per_token``, ``tokens_per_second``, ...), in the unit that the name says, each
    with its standard error; an invalid measurement has none. After ``energy.compare`` they are the candidate's, and
    ``verdicts`` has what the comparison gave.
    """

    figures: Mapping[str, Quantity]
    rounds: tuple[RoundRecord, ...]
    reasons: tuple[str, ...]
    provenance: str
    scope: str
    method: str
    verdicts: tuple[VerdictRecord, ...] = ()

    @classmethod
    def of(cls, measured: MeasurementRecord) -> Result:
        """Take what a record holds."""
        return cls(
            {name: Quantity(figure) for name, figure in measured.figures.items()},
            measured.rounds,
            measured.reasons,
            measured.provenance,
            measured.scope,
            measured.method,
            measured.verdicts,
        )

    @property
    def valid(self) -> bool:
        """Whether the figures are to be trusted."""
        return not self.reasons

    @property
    def reason(self) -> str:
        """Why they are not; empty where they are."""
        return "; ".join(self.reasons)

    @property
    def joules_per_token(self) -> Quantity:
        """Energy per generated token; raises MeterError that says why where it is not known."""
        try:
            return self.figures["joules_per_token"]
        except KeyError:
            why = self.reason or f"what was measured has {', '.join(self.figures) or 'no figures'}"
            raise MeterError(f"no joules per token: {why}") from None
