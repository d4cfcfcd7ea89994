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

    def __reduce__(self) -> tuple[type[Quantity], tuple[Figure]]:
        return Quantity, (Figure(float(self), self.stderr),)

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
        return self._per("token")

    @property
    def joules_per_prompt_token(self) -> Quantity:
        """Energy per prompt token that was computed: of work without generated tokens, or of the prefill alone."""
        return self._per("prompt_token")

    @property
    def joules_per_total_token(self) -> Quantity:
        """Energy per token of prompts and answers together."""
        return self._per("total_token")

    @property
    def joules_per_response(self) -> Quantity:
        """Energy per sequence, vector or score that came back."""
        return self._per("response")

    def _per(self, denominator: str) -> Quantity:
        try:
            return self.figures[f"joules_per_{denominator}"]
        except KeyError:
            why = self.reason or f"what was measured has {', '.join(self.figures) or 'no figures'}"
            raise MeterError(f"no joules per {denominator.replace('_', ' ')}: {why}") from None
