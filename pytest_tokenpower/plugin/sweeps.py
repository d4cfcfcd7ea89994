"""What becomes of suites on the controller: the journal that a sweep is resumed from, and the claims."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.settings import CHILD_VARIABLE
from pytest_tokenpower.errors import StoreError, TokenPowerError, UsageError
from pytest_tokenpower.plugin.state import MEASUREMENTS, SESSION, SETTINGS, session_of

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import ClaimRecord, MeasurementRecord
    from pytest_tokenpower.suites.resume import Begun, Journal

_FOUND: pytest.StashKey[dict[str, Journal]] = pytest.StashKey()


def journal_path(config: pytest.Config, suite: str) -> Path:
    """The journal of a suite, beside the stored runs."""
    from pytest_tokenpower.suites.resume import journal_name

    return session_of(config).store.path / "sweeps" / journal_name(suite)


def journal_of(config: pytest.Config, suite: str) -> Journal:
    """What an interrupted sweep has finished; empty without --energy-resume. Raises UsageError, StoreError."""
    from pytest_tokenpower.suites.resume import Journal, read_journal

    if not config.stash[SETTINGS].resume:
        return Journal()
    found = config.stash.setdefault(_FOUND, {})
    if suite not in found:
        path = journal_path(config, suite)
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


def _beginning(config: pytest.Config, suite: str) -> Begun:
    from pytest_tokenpower.suites.resume import Begun

    session = session_of(config)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Begun(
        suite, now, config.stash[SETTINGS].source, session.repository.head if session.repository else None
    )


def _is_cell(test: str) -> bool:
    return test.partition("::")[0].endswith(".energy.toml")


class Sweeps:
    """Writes each cell down as soon as it is measured, from what the reports carry; judges the claims in the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._open: dict[str, Path] = {}
        self._problems: dict[str, str] = {}
        self._taken: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
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

    def _write(self, suite: str, measured: MeasurementRecord) -> None:
        from pytest_tokenpower.suites.resume import FINGERPRINT, Finished, encode_line

        before = journal_of(self._config, suite)
        fingerprint = str(measured.facts[FINGERPRINT])
        if before.of(measured.test, fingerprint) is not None:
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
        from pytest_tokenpower.suites.resume import encode_line

        path = journal_path(self._config, suite)
        path.parent.mkdir(parents=True, exist_ok=True)
        if before.begun is not None:
            os.truncate(path, before.good_bytes)
            return path
        if path.exists():
            path.replace(path.with_suffix(".previous.jsonl"))
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(encode_line(_beginning(self._config, suite)))
        scratch.replace(path)
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
        from pytest_tokenpower.suites.claims import REFUTED, judge_claims, runs_of
        from pytest_tokenpower.suites.grid import Suite

        files = dict.fromkeys(one.test.partition("::")[0] for one in measurements if _is_cell(one.test))
        claims: list[ClaimRecord] = []
        for file in files:
            suite = Suite.read(self._config.rootpath / file)
            inside = [one for one in measurements if one.test.partition("::")[0] == file]
            claims += judge_claims(suite, runs_of(suite, inside), file)
        session_of(self._config).claims = tuple(claims)
        for claim in claims:
            if claim.word == REFUTED and claim.severity == "fail":
                self._fail(claim)

    def _fail(self, claim: ClaimRecord) -> None:
        from pytest_tokenpower.reporting.suites import claim_line

        self._config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=f"{claim.suite}::claim: {claim.name}",
                location=(claim.suite, None, f"claim: {claim.name}"),
                keywords={},
                outcome="failed",
                longrepr=claim_line(claim),
                when="call",
            )
        )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if SESSION in self._config.stash and (claims := session_of(self._config).claims):
            from pytest_tokenpower.reporting.suites import claims_table

            terminalreporter.write_line("")
            for line in claims_table(claims):
                terminalreporter.write_line(line)
        for suite, count in self._taken.items():
            begun = journal_of(self._config, suite).begun
            since = f" of {begun.created}" if begun is not None else ""
            terminalreporter.write_line(f"{suite}: {count} finished cells taken over from the sweep{since}")
        for suite, problem in self._problems.items():
            terminalreporter.write_line(f"{suite}: this sweep cannot be resumed: {problem}", red=True)
