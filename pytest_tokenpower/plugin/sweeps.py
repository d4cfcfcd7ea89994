"""What becomes of suites on the controller: the journal that a sweep is resumed from, and the claims."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE, EVENTS_VARIABLE
from pytest_tokenpower.errors import StoreError, TokenPowerError, UsageError
from pytest_tokenpower.plugin.edge import Lines, said
from pytest_tokenpower.plugin.state import MEASUREMENTS, SESSION, SETTINGS, is_worker, session_of

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import ClaimRecord, MeasurementRecord
    from pytest_tokenpower.suites.grid import Suite
    from pytest_tokenpower.suites.objectives import Outcome
    from pytest_tokenpower.suites.resume import Begun, Journal

_HELD: pytest.StashKey[set[Path]] = pytest.StashKey()
_FOUND: pytest.StashKey[dict[str, Journal]] = pytest.StashKey()


def journal_path(config: pytest.Config, suite: str) -> Path:
    """Return the journal of a suite, beside the stored runs."""
    from pytest_tokenpower.suites.resume import journal_name

    return session_of(config).store.path / "sweeps" / journal_name(suite)


def journal_of(config: pytest.Config, suite: str) -> Journal:
    """Return what an interrupted sweep has finished; empty without --energy-resume. Raises UsageError, StoreError."""
    from pytest_tokenpower.suites.resume import Journal, read_journal

    if not config.stash[SETTINGS].resume:
        return Journal()
    found = config.stash.setdefault(_FOUND, {})
    if suite not in found:
        path = journal_path(config, suite)
        if path.exists():
            _hold(config, path)
        try:
            journal = read_journal(path.read_bytes())
        except FileNotFoundError:
            journal = Journal()
        except OSError as error:
            raise StoreError(f"{path}: the interrupted sweep cannot be read: {error.strerror}") from error
        if problem := journal.problem(_beginning(config, suite)):
            raise UsageError(problem)
        found[suite] = journal
    return found[suite]


def _hold(config: pytest.Config, path: Path) -> None:
    """Keep other runs from writing a journal until this one ends; raises UsageError where one does already."""
    held = config.stash.setdefault(_HELD, set())
    if path in held or is_worker(config) or sys.platform == "win32":
        return
    import fcntl

    descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{path}: another run is measuring this suite now: wait for its end") from None
    held.add(path)
    config.add_cleanup(lambda: os.close(descriptor))


def _beginning(config: pytest.Config, suite: str) -> Begun:
    from pytest_tokenpower.suites.resume import Begun

    session = session_of(config)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Begun(
        suite, now, config.stash[SETTINGS].source, session.repository.head if session.repository else None
    )


CLAIM = "claim: "
"""Begins the names of the reports by which claims fail a run."""


def _is_cell(test: str) -> bool:
    file, _, name = test.partition("::")
    return file.endswith(".energy.toml") and not name.startswith(CLAIM)


class Sweeps:
    """Writes each cell down as soon as it is measured, from what the reports carry; judges the claims in the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._open: dict[str, Path] = {}
        self._problems: dict[str, str] = {}
        self._notes: list[str] = []
        self._taken: dict[str, int] = {}
        self._objectives: list[Outcome] = []
        self._suites: dict[str, Suite | UsageError] = {}
        self._events = os.environ.get(EVENTS_VARIABLE) if CHILD_VARIABLE not in os.environ else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        selected = tuple(item.name for item in session.items if _is_cell(item.nodeid))
        if selected:
            self._tell("", selected=selected)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if _is_cell(nodeid):
            self._look(nodeid.partition("::")[0])
            self._tell(nodeid)

    def _look(self, file: str) -> None:
        """Read a suite as its first cell begins: who changes the file during a sweep means the next one."""
        if file in self._suites or CHILD_VARIABLE in os.environ:
            return
        from pytest_tokenpower.suites.grid import Suite
        from pytest_tokenpower.suites.instances import instances

        try:
            suite = Suite.read(self._config.rootpath / file)
            instances(suite)
            self._suites[file] = suite
        except UsageError as error:
            self._suites[file] = error

    def _tell(self, test: str, **what: Any) -> None:
        """Tell whoever shows this run."""
        if self._events is None:
            return
        import msgspec

        from pytest_tokenpower.suites.progress import Event

        # Who shows it can do without a line; the sweep must not end by it.
        with suppress(OSError), open(self._events, "ab") as stream:
            stream.write(msgspec.json.encode(Event(test.rpartition("::")[2], **what)) + b"\n")

    def _tell_end(self, report: pytest.TestReport) -> None:
        if report.when != "call" and (report.when != "setup" or report.passed):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longreprtext)
        figures = {
            name: each["value"] for name, each in getattr(report, "energy", {}).get("figures", {}).items()
        }
        self._tell(
            report.nodeid,
            outcome=report.outcome,
            reason=next(iter(reason.splitlines()), "").removeprefix("Skipped: "),
            seconds=report.duration,
            figures=figures,
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _is_cell(report.nodeid):
            self._tell_end(report)
            if report.when == "setup" and report.passed and CHILD_VARIABLE not in os.environ:
                self._anew(report.nodeid.partition("::")[0])
        if report.when != "call" or not hasattr(report, "energy") or CHILD_VARIABLE in os.environ:
            return
        if not _is_cell(report.energy["test"]):
            return
        import msgspec

        from pytest_tokenpower.core.records import MeasurementRecord
        from pytest_tokenpower.suites.resume import FILE, finishes

        measured = msgspec.convert(report.energy, MeasurementRecord)
        if finishes(measured):
            suite = str(measured.facts[FILE])
            try:
                self._write(suite, measured)
            except (OSError, TokenPowerError) as error:
                self._problems[suite] = str(error)

    def _anew(self, suite: str) -> None:
        """Set the sweep before this one aside as the first cell can be measured.

        Interrupted before that is finished, this one would else be resumed from the one before.
        """
        chosen = self._config.stash[SETTINGS]
        if chosen.resume or chosen.disabled or suite in self._open or suite in self._problems:
            return
        from pytest_tokenpower.suites.resume import Journal

        try:
            if journal_path(self._config, suite).exists():
                self._open[suite] = self._begin(suite, Journal())
        except (OSError, TokenPowerError) as error:
            self._problems[suite] = str(error)

    def _write(self, suite: str, measured: MeasurementRecord) -> None:
        from pytest_tokenpower.suites.resume import FINGERPRINT, Finished, encode_line

        before = journal_of(self._config, suite)
        fingerprint = str(measured.facts[FINGERPRINT])
        finished = before.of(measured.test, fingerprint)
        if finished is not None and finished.rounds == measured.rounds:
            self._taken[suite] = self._taken.get(suite, 0) + 1
            return
        if suite not in self._open:
            self._open[suite] = self._begin(suite, before)
        with self._open[suite].open("ab") as stream:
            stream.write(encode_line(Finished(fingerprint, measured)))
            stream.flush()
            os.fsync(stream.fileno())

    def _begin(self, suite: str, before: Journal) -> Path:
        """Begin the suite's journal, or go on with it after its last whole line."""
        from pytest_tokenpower.core.files import write_whole
        from pytest_tokenpower.suites.resume import encode_line, read_journal

        path = journal_path(self._config, suite)
        path.parent.mkdir(parents=True, exist_ok=True)
        _hold(self._config, path)
        aside = path.with_suffix(".previous.jsonl")
        if before.begun is not None:
            if (lost := path.stat().st_size - before.good_bytes) > 0:
                shutil.copyfile(path, aside)
                self._notes.append(
                    f"{path}: {lost} bytes after its last good line are no part of it (a run was killed, or the file "
                    f"is damaged): their cells were measured anew; {aside.name} is as it was"
                )
            os.truncate(path, before.good_bytes)
            return path
        if self._config.stash[SETTINGS].resume and path.exists():
            self._notes.append(
                f"{path}: is damaged from its first line: measured anew; {aside.name} is as it was"
            )
        # A sweep of no cell leaves the one before it where it is kept.
        if path.exists():
            data = path.read_bytes()
            kept = read_journal(data)
            if kept.finished or kept.good_bytes < len(data):
                path.replace(aside)
        write_whole(path, encode_line(_beginning(self._config, suite)))
        return path

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        result = yield
        measurements = self._config.stash[MEASUREMENTS]
        if CHILD_VARIABLE not in os.environ and any(_is_cell(measured.test) for measured in measurements):
            self._judge(measurements)
        return result

    def _judge(self, measurements: Sequence[MeasurementRecord]) -> None:
        """Judge the claims of every suite of which something was measured; a claim may fail the run."""
        from pytest_tokenpower.reporting.suites import claim_line
        from pytest_tokenpower.suites.claims import judge_claims, runs_of
        from pytest_tokenpower.suites.objectives import judge_objectives

        files = dict.fromkeys(one.test.partition("::")[0] for one in measurements if _is_cell(one.test))
        claims: list[ClaimRecord] = []
        for file in files:
            self._look(file)
            suite = self._suites[file]
            if isinstance(suite, UsageError):
                self._fail(
                    file, "all", f"the file was changed as the sweep began, and no claim is judged: {suite}"
                )
                continue
            inside = [one for one in measurements if one.test.partition("::")[0] == file]
            runs = runs_of(suite, inside)
            claims += judge_claims(suite, runs, file, self._config.stash[SETTINGS].alpha)
            self._objectives += judge_objectives(suite, runs)
        session_of(self._config).claims = tuple(claims)
        for claim in claims:
            if claim.fails:
                self._fail(claim.suite, claim.name, claim_line(claim))

    def _fail(self, suite: str, claim: str, words: str) -> None:
        self._config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=f"{suite}::{CLAIM}{claim}",
                location=(suite, None, f"{CLAIM}{claim}"),
                keywords={},
                outcome="failed",
                longrepr=said(words),
                when="call",
            )
        )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = Lines(terminalreporter)
        if SESSION in self._config.stash and (claims := session_of(self._config).claims):
            from pytest_tokenpower.reporting.suites import claims_table

            lines.write_line("")
            for line in claims_table(claims):
                lines.write_line(line)
        for outcome in self._objectives:
            from pytest_tokenpower.reporting.suites import objective_lines

            lines.write_line("")
            for line in objective_lines(outcome):
                lines.write_line(line)
        for suite, count in self._taken.items():
            begun = journal_of(self._config, suite).begun
            since = f" of {begun.created}" if begun is not None else ""
            lines.write_line(f"{suite}: {count} finished cells taken over from the sweep{since}")
        for note in self._notes:
            lines.write_line(note)
        for suite, problem in self._problems.items():
            lines.write_line(f"{suite}: this sweep cannot be resumed: {problem}", red=True)
