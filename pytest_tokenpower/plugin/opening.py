"""How a test comes by its Energy: with the GPUs held, skipped where there is no meter, gone when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.errors import HistoryError, MeterError, StoreError, UsageError
from pytest_tokenpower.plugin import marker
from pytest_tokenpower.plugin.edge import fail, faults_end_in, said
from pytest_tokenpower.plugin.state import (
    ATTEMPTS,
    EACH,
    ENERGY,
    NO_METER,
    SETTINGS,
    SKIPPED,
    TWICE,
    session_of,
    test_id,
)

if TYPE_CHECKING:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy


@contextmanager
def open_energy(item: pytest.Item) -> Iterator[Energy | DisabledEnergy]:
    """Give a test what it measures with.

    While the test lasts no other process of this user measures on the same GPUs (an xdist worker, another job).
    """
    from pytest_tokenpower.plugin.watching import watch
    from pytest_tokenpower.runner.locks import hold_devices
    from pytest_tokenpower.runner.open_windows import own_boards

    # A test may come by the fixture in ways that nobody could see when it was collected.
    watch(item.config)
    with faults_end_in(fail):
        energy = _energy(item)
    boards: frozenset[str] = getattr(energy, "boards", frozenset())
    try:
        with (
            own_boards(item.nodeid, boards, waits_for_threads=True),
            hold_devices(getattr(energy, "gpu_ids", ())),
        ):
            yield energy
    finally:
        # A plugin may run the item again.
        if ENERGY in item.stash:
            del item.stash[ENERGY]
        if NO_METER in item.stash:
            del item.stash[NO_METER]


def _energy(item: pytest.Item) -> Energy | DisabledEnergy:
    from pytest_tokenpower.plugin.soaking import soak_of
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy

    config = item.config
    chosen = config.stash[SETTINGS]
    if chosen.skip:
        pytest.skip("measures energy (--energy-skip)")
    if chosen.disabled:
        return DisabledEnergy(pytest.skip)
    try:
        session = session_of(config)
        if (test := test_id(item)) in config.stash.get(TWICE, ()):
            raise UsageError(twice(test))
        if (workers := _workers_of_each(config)) > 1:
            raise UsageError(
                f"{test}: --dist=each has {workers} workers run each test, and a test has one measurement a run: "
                "another --dist shares the tests out"
            )
        _ = session.baselines
        item.stash[ENERGY] = fixture = Energy(
            test,
            marker.read_budget(item),
            session,
            lambda result, args, kwargs, fn: item.ihook.pytest_tokenpower_count_tokens(
                result=result, args=args, kwargs=kwargs
            ),
            item.stash.get(ATTEMPTS, ()),
            soak=soak_of(item),
        )
        return fixture
    except MeterError as error:
        if chosen.require_hardware:
            item.stash[NO_METER] = f"energy_require_hardware is set, and {error}"
            return DisabledEnergy(pytest.skip)
        item.stash[SKIPPED] = said(error)
        pytest.skip(said(error))
    except (UsageError, HistoryError, StoreError) as error:
        fail(error)


def twice(test: str) -> str:
    """Say that a test is in a run twice."""
    return (
        f"{test} is in this run twice, and its measurements would be taken for each other's: name it once, and leave "
        "--keep-duplicates away"
    )


def _workers_of_each(config: pytest.Config) -> int:
    """Return how many xdist workers run every test."""
    return int(getattr(config, "workerinput", {}).get(EACH, 1))
