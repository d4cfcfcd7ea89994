"""The stored schema, versioned: a run, its measurements and their raw rounds, as immutable JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pytest_tokenpower.core.denominators import denominator, figure_per
from pytest_tokenpower.core.integrity import has_digest, is_damaged, with_digest
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import StoreError

SCHEMA_VERSION = 2
"""1 is read, too: see :func:`_from_version_1`."""

OTHER_VARIANT = "the baseline variant"
"""What a verdict of ``energy.compare`` is against."""


class Figure(msgspec.Struct, frozen=True, gc=False):
    """A quantity with its standard error, in the unit that the field's name says."""

    value: float
    stderr: float


class PhaseRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One phase (prefill or decode) of one round. ``joules`` is for all repeats of the round together.

    ``undivided_joules`` were in steps of both phases that could not be divided: half of them counts here, and any share
    may be true, which is not in ``stderr_joules``.
    """

    joules: float
    stderr_joules: float
    seconds: float
    estimated: bool = False
    undivided_joules: float = 0.0


class RoundRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One round: ``repeats`` executions of the workload in one window; the sums are over all of them.

    ``cached_prompt_tokens`` of the prompt tokens came from a prefix cache and were not prefilled. ``joules`` is None
    where the meter could not say. ``reasons`` is empty for a good round; otherwise the guards that
    dropped it. ``limited_shares`` is the share of the window's time under each limit (``power`` is information,
    thermal ones drop the round); a limit that was not read is absent. ``latency`` are percentiles over its requests.
    """

    start_ns: int
    seconds: float
    joules: float | None
    stderr_joules: float | None
    prompt_tokens: int
    generated_tokens: int
    responses: int = 1
    cached_prompt_tokens: int = 0
    repeats: int = 1
    phases: dict[str, PhaseRecord] = {}
    device_joules: dict[str, float | None] = {}
    peak_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    memory_gib: float | None = None
    latency: dict[str, float] = {}
    limited_shares: dict[str, float] = {}
    reasons: tuple[str, ...] = ()


class ScopeFigure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The energy of another scope than the figure's own, measured over the same rounds.

    ``joules_per_token`` is None where it is not known, for the ``reason``, or where no tokens were generated;
    ``figures`` have the other denominators. A slow meter's are those of the whole measurement: ``span_seconds`` long,
    with ``share_in_rounds`` of that time inside rounds.
    """

    scope: str
    provenance: str = "measured"
    joules_per_token: Figure | None = None
    reason: str = ""
    span_seconds: float | None = None
    share_in_rounds: float | None = None
    figures: dict[str, Figure] = {}

    def compared(self, key: Mapping[str, Fact]) -> tuple[Figure | None, str]:
        """Return the figure with the denominator that a measurement with this key is compared by, and its name."""
        name = figure_per(denominator(key))
        return (self.joules_per_token if name == "joules_per_token" else self.figures.get(name)), name


class PhaseSplit(msgspec.Struct, frozen=True, omit_defaults=True):
    """How prefill and decode were told apart; ``reason`` says why they were not.

    ``mixed_share`` is the share of the steps' energy in steps that did both (None: unknown), ``condition`` the
    condition number of the least squares that divided them.
    """

    mixed_share: float | None = None
    condition: float | None = None
    reason: str = ""


class ChangeRecord(msgspec.Struct, frozen=True):
    """A change with its 95 % interval, as fractions."""

    change: float
    low: float
    high: float


class WaitingRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The watts that a board draws while it waits, with their standard error, and the GPU temperature of that."""

    watts: float
    stderr: float
    celsius: float | None = None


class VerdictRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided about a measurement, against one baseline, the other variant or a ceiling.

    The numbers and notes are all that a message is made of (gate/messages.py); there is no finished text.

    Attributes:
        kind: the verdict's word.
        figure: what is compared with a baseline or the other variant.
        against: the baseline's label, OTHER_VARIANT, or the figure that has a ceiling.
        reason: why there is no comparison, or why it is not to be trusted.
        value: the figure of this run, ``baseline_value`` that of what it is held against.
        change: with its 95 % interval as fractions, at a common GPU temperature where that is known on both sides;
            ``raw_change`` is the change as it was read.
        changes: the changes of other figures by name, as fractions, and ``means`` their values in this run; ``shown``
            names those whose own interval excludes that nothing happened.
        work: the part of the change that is the GPU's work, and ``pace`` the one that is its waiting; they add up to
            ``change``. None where the waiting watts are not known.
        decided_by: the part that decides: ``total`` or ``work``.
        p_value: one-sided, of all ways in which this comparison can fail, for Holm's rule over the run.
        threshold: the change, or the value, that is the limit. One under ``noise_floor``, the smallest rise that
            fails among ``family`` comparisons, is finer than the noise.
        resolvable: the change that fails in four of five cases.
        runs: fresh processes of this code that are in it, and ``blocks`` ABBA blocks in them.
        names: what the baseline and the candidate are called, where two variants are compared.
        accepted: it stays within its limit thanks to a committed acceptance alone.
        undecided: what would decide an inconclusive verdict.
        next_step: what to do about a regression.
        notes: what else the reader should know, a sentence each.
    """

    kind: str
    against: str = ""
    reason: str = ""
    figure: str = "joules_per_token"
    value: float | None = None
    baseline_value: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    raw_change: float | None = None
    work: ChangeRecord | None = None
    pace: ChangeRecord | None = None
    decided_by: str = ""
    family: int = 1
    p_value: float | None = None
    threshold: float | None = None
    resolvable: float | None = None
    noise_floor: float | None = None
    baseline_runs: tuple[str, ...] = ()
    runs: int = 1
    blocks: int = 0
    names: tuple[str, str] | None = None
    provisional: bool = False
    accepted: bool = False
    changes: dict[str, float] = {}
    means: dict[str, float] = {}
    shown: tuple[str, ...] = ()
    undecided: str = ""
    next_step: str = ""
    notes: tuple[str, ...] = ()


class GateRecord(msgspec.Struct, frozen=True, gc=False):
    """What a test's settings have it judged by: the rise that fails it, and how many stored runs make a baseline."""

    regression: float
    baseline_runs: int


class MeasurementRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rounds of one test gave.

    ``comparable`` is False for a test that failed by itself or whose measurement is invalid: such a measurement is
    kept for the reader and never becomes a baseline. ``variants`` holds the rounds of the one that ``energy.compare``
    held the candidate against; the candidate's are ``rounds``. ``restarts`` are the rounds of further runs of the test
    in fresh processes, which its verdicts take in; of a doubtful test alone, so that a baseline is made of ``rounds``.
    ``attempts`` is how often the test ran until it was left at that (rerun plugins); ``rounds`` are of all of them.
    ``other_scopes`` were measured along with the figure; ``phase_split`` is None where no step was mixed. ``host`` and
    ``started`` (seconds since 1970) say where and when its process measured: together they tell occasions.
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
    other_scopes: tuple[ScopeFigure, ...] = ()
    phase_split: PhaseSplit | None = None
    verdicts: tuple[VerdictRecord, ...] = ()
    variants: dict[str, tuple[RoundRecord, ...]] = {}
    restarts: tuple[tuple[RoundRecord, ...], ...] = ()
    attempts: int = 1
    gate: GateRecord | None = None
    host: str = ""
    started: float | None = None


UNLIKE_BOARDS = "unlike_boards"
"""The fact in what the boards of a run's nodes differ, by node."""

NOT_MEASURED = "not measured: "
"""Begins the reason of a claim that lacks cells."""


class ClaimRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a suite's claim.

    Attributes:
        suite: the suite file, from pytest's root directory.
        name: the claim's, with the values that tell it from others of that name.
        says: the claim itself, in short.
        word: confirmed, refuted, not told or not testable here.
        figure: what it is about.
        ratio: of the figures, with its 95 % interval; of a shape the last point's, or until's, to the first's.
        p_value: two-sided, adjusted to all claims of the suite.
        runs: how many runs each side has.
        points: of a shape, the figure at each value of the axis.
        paper: what was published.
        severity: "fail" where it fails the run when it is refuted.
        reason: why it is not testable, or what refutes it.
        notes: what else the reader should know, a sentence each.
    """

    suite: str
    name: str
    says: str
    word: str
    figure: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    runs: tuple[int, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    paper: str = ""
    severity: str = "report"
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether it fails the run."""
        return self.word == "refuted" and self.severity == "fail"


class RunRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tokenpower-run"):
    """One pytest run. ``dirty`` is None where there is no git; only clean runs of a commit become a baseline.

    ``root`` is pytest's root directory from the repository's top level ("" for the top level itself); None outside
    git, and in runs that were stored before it was recorded. ``failures`` are of a run that another one has started:
    by test, what it failed with by itself. ``claims`` are those of its suites.
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
    claims: tuple[ClaimRecord, ...] = ()


_encoder = msgspec.json.Encoder()

_decoder = msgspec.json.Decoder(RunRecord)


class _Head(msgspec.Struct):
    type: str = ""
    version: Any = None


def encode_run(run: RunRecord) -> bytes:
    """Return the run as one line of JSON that ends in a digest of itself."""
    return with_digest(_encoder.encode(run)) + b"\n"


def decode_run(data: bytes, *, source: str) -> RunRecord:
    """Return a run from its JSON.

    Args:
        data: what a store or ``--energy-json`` holds.
        source: its name in an error, such as its path.

    Raises:
        StoreError: it is no run, was changed since it was written, or says what cannot have happened.
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.ValidationError as error:
        raise StoreError(f"{source}: not a run of pytest-tokenpower") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise StoreError(f"{source}: not readable as JSON ({error})") from error
    if head.type != "tokenpower-run":
        raise StoreError(f"{source}: not a run of pytest-tokenpower")
    if head.version not in (None, 1, SCHEMA_VERSION):
        raise StoreError(
            f"{source}: written in schema version {head.version}, this pytest-tokenpower reads up to {SCHEMA_VERSION}"
        )
    try:
        if head.version == SCHEMA_VERSION:
            run = _decoder.decode(data)
        else:  # The first schema left its number out, as every default.
            run = msgspec.convert(_from_version_1(msgspec.json.decode(data)), RunRecord)
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise StoreError(f"{source}: malformed run ({error})") from error
    if is_damaged(data):
        raise StoreError(f"{source}: damaged, its digest is not that of what it holds")
    if head.version == SCHEMA_VERSION and not has_digest(data):
        raise StoreError(f"{source}: it does not end in its digest: cut short, or changed by hand")
    for measurement in run.measurements:
        if what := impossible(measurement):
            raise StoreError(f"{source}: impossible: {what}")
    return run


_OTHER_SCOPE = re.compile(r"(gpu|cpu|dram|module|node|rack|other)(?:_([a-z]+))?_joules_per_token")


def _from_version_1(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run of schema 1 in the form of this one: the same facts, some of which were strings to be parsed."""
    return {
        **run,
        "version": SCHEMA_VERSION,
        "measurements": [_measurement_1(one) for one in run["measurements"]],
    }


def _measurement_1(one: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for old, new in (("arms", "variants"), ("tries", "attempts")):
        if old in found:
            found[new] = found.pop(old)
    facts, figures = dict(found.get("facts", {})), dict(found.get("figures", {}))
    phases = {
        name: facts.pop(f"phases.{name}", None) for name in ("mixed_share", "condition", "refused", "absent")
    }
    if any(value is not None for value in phases.values()):
        found["phase_split"] = {
            "mixed_share": phases["mixed_share"],
            "condition": phases["condition"],
            "reason": phases["refused"] or phases["absent"] or "",
        }
    scopes: dict[str, dict[str, Any]] = {}
    for name in list(figures):
        if match := _OTHER_SCOPE.fullmatch(name):
            group = match[1] + (f"_{match[2]}" if match[2] else "")
            scopes[group] = {"scope": match[1], "provenance": match[2] or found.get("provenance", "measured")}
            scopes[group]["joules_per_token"] = figures.pop(name)
    for name in [name for name in facts if name.startswith("beside.")]:
        group, _, what = name.removeprefix("beside.").rpartition(".")
        scope, _, provenance = group.partition("_")
        entry = scopes.setdefault(
            group, {"scope": scope, "provenance": provenance or found.get("provenance", "measured")}
        )
        entry["reason" if what == "absent" else what] = facts.pop(name)
    if scopes:
        found["other_scopes"] = list(scopes.values())
    found["facts"], found["figures"] = facts, figures
    found["verdicts"] = [_verdict_1(verdict) for verdict in found.get("verdicts", ())]
    return found


def _verdict_1(verdict: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict whose message was stored: its lines are what there is to say."""
    head, *lines = str(verdict.get("message", "")).splitlines() or [""]
    kept = {name: value for name, value in verdict.items() if name != "message"}
    if kept.get("against") == "baseline arm":
        kept["against"] = OTHER_VARIANT
    return {**kept, "reason": head, "notes": [line.strip() for line in lines]}


MOST_TOKENS = 10**12
MOST_SECONDS = 1e8
MOST_WATTS = 1e7
"""Nothing that is measured here comes near these."""


def impossible(measurement: MeasurementRecord) -> str:
    """Return what cannot be so in a measurement, in words; "" where all of it can."""
    rounds = [
        *measurement.rounds,
        *(one for variant in measurement.variants.values() for one in variant),
        *(one for restart in measurement.restarts for one in restart),
    ]
    for number, one in enumerate(rounds, 1):
        for what in _impossible_round(one):
            return f"round {number} of {measurement.test}: {what}"
    if measurement.attempts < 1:
        return f"{measurement.attempts} attempts at {measurement.test}"
    figures: list[tuple[str, Figure]] = list(measurement.figures.items())
    for other in measurement.other_scopes:
        own = (other.joules_per_token, *other.figures.values())
        figures += [(other.scope, figure) for figure in own if figure is not None]
    for name, figure in figures:
        if not math.isfinite(figure.value) or math.isnan(figure.stderr) or figure.stderr < 0:
            return f"{name} of {measurement.test}: {figure.value} with standard error {figure.stderr}"
    return ""


def _impossible_round(one: RoundRecord) -> Iterator[str]:
    """Return a dropped round may hold what its reasons say is wrong with it, as long as its numbers are numbers."""
    good = not one.reasons
    tokens = one.prompt_tokens + one.generated_tokens
    if not 0 <= one.seconds <= MOST_SECONDS or (good and one.seconds == 0):
        yield f"{one.seconds} seconds"
    if min(one.prompt_tokens, one.generated_tokens) < 0 or tokens > MOST_TOKENS:
        yield f"{one.prompt_tokens} prompt and {one.generated_tokens} generated tokens"
    if good and tokens == 0 and not one.responses:
        yield "no tokens and no responses"
    if not 0 <= one.cached_prompt_tokens <= one.prompt_tokens:
        yield f"{one.cached_prompt_tokens} cached of {one.prompt_tokens} prompt tokens"
    if one.repeats < 1 or one.responses < 0 or one.start_ns < 0:
        yield f"{one.repeats} repeats, {one.responses} responses, begun at {one.start_ns} ns"
    if one.joules is not None:
        most = MOST_WATTS * max(one.seconds, 1.0)
        if not abs(one.joules) <= most or (good and one.joules <= 0):
            yield f"{one.joules} joules in {one.seconds} seconds"
    if not _finite([one.stderr_joules], least=0):
        yield f"a standard error of {one.stderr_joules} joules"
    if not _finite(one.device_joules.values()) or not _finite(
        [one.peak_watts, one.temperature_celsius, one.sm_clock_mhz, one.memory_gib]
    ):
        yield "a reading that is no finite number"
    if not _finite(one.limited_shares.values(), least=0):
        yield "a share of time under a limit that is none"
    for name, phase in one.phases.items():
        errors = [phase.seconds, phase.stderr_joules, phase.undivided_joules]
        if not _finite([phase.joules]) or not _finite(errors, least=0):
            yield f"{phase.joules} joules in {phase.seconds} seconds of {name}"


def _finite(values: Iterable[float | None], least: float = -math.inf) -> bool:
    return all(value is None or (math.isfinite(value) and value >= least) for value in values)
