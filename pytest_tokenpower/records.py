"""Stored runs, to be read by programs: the schema, and how a file becomes a run."""

from pytest_tokenpower.core.records import (
    Figure,
    MeasurementRecord,
    PhaseRecord,
    PhaseSplit,
    RoundRecord,
    RunRecord,
    ScopeFigure,
    VerdictRecord,
    decode_run,
)
from pytest_tokenpower.gate.messages import message

__all__ = [
    "Figure",
    "MeasurementRecord",
    "PhaseRecord",
    "PhaseSplit",
    "RoundRecord",
    "RunRecord",
    "ScopeFigure",
    "VerdictRecord",
    "decode_run",
    "message",
]
