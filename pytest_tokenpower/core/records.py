"""The stored schema, versioned: a run, its measurements and their raw rounds, as immutable JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import StoreError

SCHEMA_VERSION = 1


class Figure(msgspec.Struct, frozen=True, gc=False):
    """A quantity with its standard error, in the unit that the field's name says."""

    value: float
    stderr: float


class PhaseRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One phase (prefill or decode) of one round. ``joules`` is for all repeats of the round together."""

    joules: float
    stderr_joules: float
    seconds: float
    estimated: bool = False


class RoundRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One round: ``repeats`` executions of the workload in one window; the sums are over all of them.

    ``joules`` is None where the meter could not say. ``reasons`` is empty for a good round; otherwise the guards that
    dropped it. ``limited_shares`` is the share of the window's time under each limit (``power`` is information,
    thermal ones drop the round); a limit that was not read is absent.
    """

    start_ns: int
    seconds: float
    joules: float | None
    stderr_joules: float | None
    prompt_tokens: int
    generated_tokens: int
    responses: int = 1
    repeats: int = 1
    phases: dict[str, PhaseRecord] = {}
    device_joules: dict[str, float | None] = {}
    peak_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    limited_shares: dict[str, float] = {}
    reasons: tuple[str, ...] = ()


class VerdictRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided about a measurement, against one baseline or an absolute budget.

    ``change`` and its 95 % interval are fractions, at a common GPU temperature where that is known on both sides;
    ``raw_change`` is the change as it was read. A ``threshold`` under ``noise_floor``, the smallest rise that is
    significant, is finer than the noise.
    """

    kind: str
    message: str
    against: str = ""
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    raw_change: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    resolvable: float | None = None
    noise_floor: float | None = None
    baseline_runs: tuple[str, ...] = ()
    provisional: bool = False


class GateRecord(msgspec.Struct, frozen=True, gc=False):
    """What a test's settings have it judged by: the rise that fails it, and how many stored runs make a baseline."""

    regression: float
    baseline_runs: int


class MeasurementRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rounds of one test gave.

    ``comparable`` is False for a test that failed by itself or whose measurement is invalid: such a measurement is
    kept for the reader and never becomes a baseline. ``arms`` holds the rounds of the variant that ``energy.compare``
    held the candidate against; the candidate's are ``rounds``. ``restarts`` are the rounds of further runs of the test
    in fresh processes, which its verdicts take in; of a doubtful test alone, so that a baseline is made of ``rounds``.
    ``tries`` is how often the test ran until it was left at that (rerun plugins); ``rounds`` are of all those tries.
    """

    test: str
    key: dict[str, Fact]
    provenance: str
    scope: str
    method: str
    rounds: tuple[RoundRecord, ...]
    comparable: bool
    facts: dict[str, Fact] = {}
    reasons: tuple[str, ...] = ()
    figures: dict[str, Figure] = {}
    verdicts: tuple[VerdictRecord, ...] = ()
    variants: dict[str, tuple[RoundRecord, ...]] = msgspec.field(default_factory=dict, name="arms")
    restarts: tuple[tuple[RoundRecord, ...], ...] = ()
    attempts: int = msgspec.field(default=1, name="tries")
    gate: GateRecord | None = None


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="tokenpower-run"):
    """One pytest run. ``dirty`` is None where there is no git; only clean runs of a commit become a baseline.

    ``root`` is pytest's root directory from the repository's top level ("" for the top level itself); None outside
    git, and in runs that were stored before it was recorded. ``failures`` are of a run that another one has started:
    by test, what it failed with by itself.
    """

    id: str
    created: str
    measurements: tuple[MeasurementRecord, ...]
    version: int = SCHEMA_VERSION
    name: str | None = None
    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None
    root: str | None = None
    host: dict[str, Fact] = {}
    versions: dict[str, str] = {}
    command: tuple[str, ...] = ()
    failures: dict[str, str] = {}


_encoder = msgspec.json.Encoder()


_decoder = msgspec.json.Decoder(RunRecord)


class _Head(msgspec.Struct):
    type: str = ""
    version: Any = None


def encode_run(run: RunRecord) -> bytes:
    """The run as one line of JSON."""
    return _encoder.encode(run) + b"\n"


def decode_run(data: bytes, *, source: str) -> RunRecord:
    """A run from its JSON; raises StoreError that names ``source`` and says what is wrong with it."""
    try:
        return _checked(_decoder.decode(data), source)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{source}: {_complaint(data, error)}") from error


def _checked(run: RunRecord, source: str) -> RunRecord:
    if run.version != SCHEMA_VERSION:
        raise StoreError(
            f"{source}: written in schema version {run.version}, this pytest-tokenpower reads {SCHEMA_VERSION}"
        )
    return run


def _complaint(data: bytes, error: msgspec.MsgspecError) -> str:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.MsgspecError:
        return f"not readable as JSON ({error})"
    if head.type != "tokenpower-run":
        return "not a run of pytest-tokenpower"
    if head.version not in (None, SCHEMA_VERSION):
        return f"written in schema version {head.version}, this pytest-tokenpower reads {SCHEMA_VERSION}"
    return f"malformed run ({error})"
