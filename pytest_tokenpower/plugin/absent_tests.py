"""Energy tests that the baseline holds and a whole run no longer has: deleted, or renamed without a trace in git."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.plugin.edge import Lines
from pytest_tokenpower.plugin.state import MEASUREMENTS, SESSION, session_of, test_id

if TYPE_CHECKING:
    from pytest_tokenpower.store.baseline import Baseline


class AbsentTests:
    """Watches what is collected, and names the stored tests that are missing; on the controller only.

    Nothing is said of a part of the suite that was not collected as a whole: tests that were selected by name or
    marker, deselected, ignored, or lie in a module that was skipped or could not be imported.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._collected: set[str] = set()
        self._unknown: list[str] = []
        self._selected = False

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._selected = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._unknown.append(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._collected.update(map(test_id, session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Iterable[str]) -> None:
        self._collected.update(ids)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._lines():
            Lines(terminalreporter).write_line(line, yellow=True)

    def _lines(self) -> list[str]:
        option = self._config.option
        narrowed = any(
            getattr(option, name, None)
            for name in (
                "keyword",
                "markexpr",
                "deselect",
                "ignore",
                "ignore_glob",
                "lf",
                "stepwise",
                "maxfail",
            )
        )
        if narrowed or self._selected or not self._collected or SESSION not in self._config.stash:
            return []
        session = session_of(self._config)
        root, places = self._config.rootpath, self._places()
        if places is None:
            return []
        from pytest_tokenpower.store.renames import likely_renames

        lines: list[str] = []
        try:
            baselines = session.baselines
        except TokenPowerError:
            return []  # Said by each test that needs one.
        for baseline in baselines:
            stored = baseline.newest_tests()
            followed = baseline.earlier_names(self._collected)
            gone = {
                test: key
                for test, key in stored.items()
                if _within(root / test.partition("::")[0], places)
                and test not in followed
                and not any(test.startswith(prefix) for prefix in self._unknown if prefix)
                and not any(each == test or each.startswith(f"{test}@") for each in self._collected)
            }
            measured = {one.test: one.key for one in self._config.stash[MEASUREMENTS]}
            new = {
                test: key
                for test, key in measured.items()
                if test not in stored and stored.keys().isdisjoint(baseline.earlier_names([test]))
            }
            likely = likely_renames(gone, new)
            lines += [_line(baseline, test, likely) for test in gone]
        return lines

    def _places(self) -> list[Path] | None:
        """Return the files and folders that were collected as a whole; None where single tests were named."""
        given = [str(each) for each in self._config.args]
        if any("::" in each for each in given):
            return None
        return [Path(self._config.invocation_params.dir, each).resolve() for each in given]


def _line(baseline: Baseline, test: str, likely: Mapping[str, str]) -> str:
    base = test.partition("[")[0]
    line = f"{baseline.label} holds {test}, which this run does not have"
    if base not in likely:
        return (
            f"{line}: if it was renamed, say so with tokenpower rename, or its stored runs do not follow it"
        )
    return (
        f"{line}: was it renamed to {likely[base]}? Then tokenpower rename {shlex.quote(baseline.identity(base))} "
        f"{shlex.quote(baseline.identity(likely[base]))}, and commit the file that it writes"
    )


def _within(file: Path, places: Iterable[Path]) -> bool:
    resolved = file.resolve()
    return any(resolved.is_relative_to(place) for place in places)
