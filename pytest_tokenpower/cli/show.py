"""`tokenpower show`: one stored run as a person reads it."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from pytest_tokenpower.analysis.figures import nodes_of, watts_of
from pytest_tokenpower.analysis.rounds import good
from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.denominators import unit_of
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord, RunRecord, ScopeFigure, encode_run
from pytest_tokenpower.core.text import per_token
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.messages import message
from pytest_tokenpower.store.access import RUN_HELP, StoreContext, choose_test
from pytest_tokenpower.store.git import subjects
from pytest_tokenpower.store.identity import repository_test
from pytest_tokenpower.store.keys import stated

_WIDTH = 100
_LABEL = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, and which of its tests."""
    parser.add_argument("run", metavar="RUN", nargs="?", help=f"{RUN_HELP} (default: the newest run)")
    parser.add_argument(
        "--test", metavar="TEST", help="only this test (its id, or a part that fits no other)"
    )
    parser.add_argument("--json", action="store_true", help="the record as it is stored, indented")
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the run."""
    place = StoreContext.of(arguments)
    if arguments.run is None:
        entries, store = place.entries(), place.store
    else:
        found = place.runs(arguments.run, commit_only=True)
        entries, store = found.entries, found.store
        if not entries:
            raise UsageError(f"{found.label} holds no run")
    record = store.load(entries[0])
    if arguments.test is not None:
        named = [(repository_test(record.root, one.test), one) for one in record.measurements]
        known, here = {name for name, _ in named}, repository_test(record.root, arguments.test)
        test = here if here in known else choose_test(arguments.test, known)
        kept = tuple(one for name, one in named if name == test)
        record = msgspec.structs.replace(record, measurements=kept)
    if arguments.json:
        print(msgspec.json.format(encode_run(record), indent=2).decode())
        return 0
    subject = ""
    if record.commit and place.repository is not None:
        subject = subjects(place.repository, [record.commit]).get(record.commit, "")
    if arguments.run is not None and len(entries) > 1:
        others = ", ".join(entry.id8 for entry in entries[1:6]) + (" ..." if len(entries) > 6 else "")
        print(f"the newest of {len(entries)} runs of {arguments.run}; the others: {others}\n")
    print("\n".join(as_text(record, subject)))
    return 0


def as_text(record: RunRecord, subject: str = "") -> list[str]:
    """Return the run's head, then each measurement; lines of about 100 characters."""
    lines = [f"run {record.id}"]
    lines += _row("time", record.created)
    if record.name:
        lines += _row("name", record.name)
    lines += _row("commit", _commit(record, subject))
    lines += _row("command", " ".join(["pytest", *record.command]))
    lines += _row("host", _facts(record.host))
    lines += _row("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items()))
    for measured in record.measurements:
        lines += ["", *_measurement(measured)]
    if not record.measurements:
        lines += ["", "It holds no measurement."]
    return lines


def _commit(record: RunRecord, subject: str) -> str:
    if record.commit is None:
        return "none: outside git"
    branch = f" on {record.branch}" if record.branch else ""
    dirty = ", with uncommitted changes: no baseline" if record.dirty else ""
    return f"{record.commit[:12]}{branch}{dirty}{f': {subject}' if subject else ''}"


def _measurement(measured: MeasurementRecord) -> Iterator[str]:
    yield measured.test
    honest = "" if measured.provenance == "measured" else f"{measured.provenance.upper()}, not measured: "
    yield from _row("measured by", f"{honest}{measured.method or 'nothing'} ({measured.scope} energy)")
    if not measured.comparable:
        yield from _row("INVALID", "; ".join(measured.reasons) or "no reason is recorded")
    for name, figure in measured.figures.items():
        unit = FIGURES.get(name, "")
        error = (
            f" ± {196 * figure.stderr / abs(figure.value):.1f} %" if figure.stderr and figure.value else ""
        )
        yield from _row(
            "figures" if name == next(iter(measured.figures)) else "",
            f"{name} {figure.value:.4g}{error}  ({unit})",
        )
    yield from _row("devices", _devices(measured))
    yield from _row("also measured", "; ".join(_scope(each, measured) for each in measured.other_scopes))
    if (split := measured.phase_split) is not None:
        share = (
            ""
            if split.mixed_share is None
            else f"{split.mixed_share:.2%} of the steps' energy in mixed steps"
        )
        yield from _row("phases", ", ".join(part for part in (share, split.reason) if part))
    yield from _row("rounds", _rounds(measured.rounds))
    for variant, rounds in measured.variants.items():
        yield from _row(f"{variant} variant", _rounds(rounds))
    for number, rounds in enumerate(measured.restarts, start=1):
        yield from _row(f"restart {number}", _rounds(rounds))
    if measured.attempts > 1:
        yield from _row("attempts", f"{measured.attempts} in one process, their rounds pooled")
    dropped = Counter(reason for one in measured.rounds for reason in one.reasons)
    for reason, count in dropped.most_common():
        yield from _row("  dropped", f"{count} of {len(measured.rounds)}: {reason}")
    yield from _row("conditions", _conditions(measured.rounds))
    yield from _row("key", stated(measured.key))
    yield from _row("facts", _facts(measured.facts))
    for verdict in measured.verdicts:
        for at, line in enumerate(message(verdict, measured.test).splitlines()):
            yield from _row("verdict" if at == 0 else "", line.strip())
    if not measured.verdicts:
        yield from _row("verdict", "none: nothing was asked of it")


def _scope(scope: ScopeFigure, measured: MeasurementRecord) -> str:
    figure, name = scope.compared(measured.key)
    said = (
        f"no {scope.scope}: {scope.reason}"
        if figure is None
        else f"{scope.scope} {per_token(figure.value, unit_of(name))}"
    )
    return said if scope.provenance == "measured" else f"{said} ({scope.provenance})"


def _devices(measured: MeasurementRecord) -> str:
    """Return what each of several devices drew, by node."""
    watts, nodes = watts_of(measured.rounds), nodes_of(measured.facts)
    if len(watts) < 2:
        return ""
    parts = []
    for node in dict.fromkeys(nodes.get(device, "") for device in watts):
        there = {device: each for device, each in watts.items() if nodes.get(device, "") == node}
        listed = ", ".join(f"{device} {each:.0f} W" for device, each in there.items())
        parts.append(f"node {node}: {listed}, together {sum(there.values()):.0f} W" if node else listed)
    return "; ".join(parts)


def _rounds(rounds: tuple[RoundRecord, ...]) -> str:
    kept = good(rounds)
    if not rounds:
        return "none"
    seconds = [one.seconds for one in rounds]
    repeats = {one.repeats for one in rounds}
    shortest, longest = f"{min(seconds):.3g}", f"{max(seconds):.3g}"
    length = longest if shortest == longest else f"{shortest} to {longest}"
    text = f"{len(kept)} good of {len(rounds)}, {length} s each"
    if repeats != {1}:
        text += f", {min(repeats)} to {max(repeats)} executions in one"
    tokens = {one.generated_tokens for one in rounds}
    return text + f", {min(tokens)}{f' to {max(tokens)}' if len(tokens) > 1 else ''} generated tokens"


def _conditions(rounds: tuple[RoundRecord, ...]) -> str:
    parts = []
    for name, unit in (("temperature_celsius", "°C"), ("sm_clock_mhz", "MHz SM"), ("peak_watts", "W peak")):
        values = [value for one in rounds if (value := getattr(one, name)) is not None]
        if values:
            low, high = min(values), max(values)
            parts.append(
                f"{low:.0f} {unit}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f} {unit}"
            )
    limits: dict[str, float] = {}
    for one in rounds:
        for name, share in one.limited_shares.items():
            limits[name] = max(limits.get(name, 0.0), share)
    parts += [
        f"limited by {name.replace('_', ' ')} up to {share:.0%} of a round"
        for name, share in limits.items()
        if share > 0
    ]
    return ", ".join(parts)


def _facts(facts: Mapping[str, Fact]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _row(head: str, text: str) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"  {head:<{_LABEL}} ",
        subsequent_indent=" " * (_LABEL + 3),
        break_long_words=False,
        break_on_hyphens=False,
    )
