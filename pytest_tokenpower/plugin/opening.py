"""How a test comes by its Energy: with the GPUs held, skipped where there is no meter, gone when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_tokenpower.errors import HistoryError, MeterError, StoreError, TokenPowerError, UsageError
from pytest_tokenpower.plugin import marker
from pytest_tokenpower.plugin.state import ATTEMPTS, ENERGY, NO_METER, SETTINGS, SKIPPED, session_of, test_id

if TYPE_CHECKING:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy


@contextmanager
def open_energy(item: pytest.Item) -> Iterator[Energy | DisabledEnergy]:
    """Give a test what it measures with.

    While the test lasts no other process of this user measures on the same GPUs (an xdist worker, another job).
    """
    from pytest_tokenpower.runner.locks import hold_devices

    energy = _energy(item)
    try:
        with hold_devices(getattr(energy, "gpu_ids", ())):
            yield energy
    finally:
        # A plugin may run the item again.
        if ENERGY in item.stash:
            del item.stash[ENERGY]
        if NO_METER in item.stash:
            del item.stash[NO_METER]


def _energy(item: pytest.Item) -> Energy | DisabledEnergy:
    from pytest_tokenpower.runner.fixture import DisabledEnergy, Energy

    config = item.config
    chosen = config.stash[SETTINGS]
    if chosen.disabled:
        return DisabledEnergy()
    try:
        session = session_of(config)
        _ = session.baselines
        item.stash[ENERGY] = fixture = Energy(
            test_id(item),
            marker.read_budget(item),
            session,
            lambda result, args, kwargs, fn: item.ihook.pytest_tokenpower_count_tokens(
                result=result, args=args, kwargs=kwargs
            ),
            item.stash.get(ATTEMPTS, ()),
        )
        return fixture
    except MeterError as error:
        if chosen.require_hardware:
            item.stash[NO_METER] = f"energy_require_hardware is set, and {error}"
            return DisabledEnergy()
        item.stash[SKIPPED] = str(error)
        pytest.skip(str(error))
    except (UsageError, HistoryError, StoreError) as error:
        raise failure(error) from None


def failure(error: TokenPowerError) -> BaseException:
    """Make a failure of the test in the error's words alone, without a traceback into the plugin."""
    return pytest.fail.Exception(str(error), pytrace=False)
