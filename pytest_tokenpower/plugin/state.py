"""What the hooks share: where pytest keeps our state, and which verdicts fail a test."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.core.settings import Settings

if TYPE_CHECKING:
    from pytest_tokenpower.core.records import MeasurementRecord, VerdictRecord
    from pytest_tokenpower.core.types import Fact
    from pytest_tokenpower.runner.fixture import Energy
    from pytest_tokenpower.runner.outcome import Attempt
    from pytest_tokenpower.runner.session import Session

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
ENERGY: pytest.StashKey[Energy] = pytest.StashKey()
SKIPPED: pytest.StashKey[str] = pytest.StashKey()
NO_METER: pytest.StashKey[str] = pytest.StashKey()
MEASUREMENTS: pytest.StashKey[list[MeasurementRecord]] = pytest.StashKey()
MEASUREMENT: pytest.StashKey[MeasurementRecord] = pytest.StashKey()
WAYS: pytest.StashKey[tuple[int, int]] = pytest.StashKey()
"""How many of the collected tests can fail by a comparison, and by how many ceilings that have a p-value."""
ATTEMPTS: pytest.StashKey[tuple[Attempt, ...]] = pytest.StashKey()
TWICE: pytest.StashKey[frozenset[str]] = pytest.StashKey()
"""Ids that several energy tests of the run have."""

EACH = "tokenpower_workers_of_each_test"
"""What the controller of xdist tells a worker of ``--dist=each``: how many run every test."""


MOST_PARAMETER = 200
"""A longer parameter is a prompt or a document: it is no column."""


def session_of(config: pytest.Config) -> Session:
    """Return what lives for this process's whole run, made when it is first asked for."""
    if SESSION not in config.stash:
        from pytest_tokenpower.runner.session import Session

        config.stash[SESSION] = Session(
            config.stash[SETTINGS],
            config.rootpath,
            cache(lambda source: config.hook.pytest_tokenpower_meters(source=source)),
        )
    session = config.stash[SESSION]
    session.gated_tests, session.ceilings = config.stash.get(WAYS, (1, 0))
    return session


def failure_of(name: str, measured: MeasurementRecord, chosen: Settings) -> str:
    """Return what fails the test called ``name``: each failing verdict, the gravest first; empty if none does."""
    from pytest_tokenpower.gate.messages import message
    from pytest_tokenpower.gate.verdict import SEVERITY

    failing = sorted(
        (verdict for verdict in measured.verdicts if _fails(verdict, chosen)),
        key=lambda verdict: SEVERITY.index(verdict.kind),
    )
    return "\n".join(message(verdict, name, failing=True) for verdict in failing)


def _fails(verdict: VerdictRecord, chosen: Settings) -> bool:
    from pytest_tokenpower.gate.verdict import FAILING

    if verdict.kind == "no baseline":
        return chosen.missing_baseline == "fail"
    if verdict.kind == "inconclusive":
        return chosen.inconclusive == "fail"
    return verdict.kind in FAILING


def is_gated(item: pytest.Item) -> bool:
    """Whether a test measures energy by what it declares, and so can fail by a comparison."""
    return "energy" in getattr(item, "fixturenames", ())


def may_measure(item: pytest.Item) -> bool:
    """Whether a test measures energy, or may ask for the fixture in its body: it has a power_budget."""
    return is_gated(item) or item.get_closest_marker("power_budget") is not None


def test_id(item: pytest.Item) -> str:
    """The node id, the same in every process: a distribution mode may add to that of its workers' items (@group)."""
    plain = f"{item.parent.nodeid}::{item.name}" if item.parent is not None else item.nodeid
    return plain if item.nodeid.startswith(plain) else item.nodeid


def parameters(item: pytest.Item) -> dict[str, Fact]:
    """Return what a parametrised test was given, as far as it is text, number or boolean."""
    from pytest_tokenpower.store.keys import canonical_fact

    given: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return {
        f"param.{name}": canonical_fact(value, name)
        for name, value in given.items()
        if isinstance(value, (int, float, bool)) or (isinstance(value, str) and len(value) <= MOST_PARAMETER)
    }


def has_workers(config: pytest.Config) -> bool:
    """Whether xdist's workers run the tests, however they were asked for (``-n``, ``--tx``): this process runs none."""
    return config.pluginmanager.has_plugin("dsession")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers: the controller gathers, shows and stores what it sends."""
    return hasattr(config, "workerinput")


def runs_tests(config: pytest.Config) -> bool:
    """Whether tests are to run: not where pytest is only asked what there is."""
    questions = ("collectonly", "showfixtures", "show_fixtures_per_test")
    return not any(getattr(config.option, question, False) for question in questions)
