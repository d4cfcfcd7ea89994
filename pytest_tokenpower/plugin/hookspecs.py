"""Hook specifications: how others add meters, engines and token counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_tokenpower.core.tokens import TokenCount
    from pytest_tokenpower.meters.types import Meter


@pytest.hookspec(firstresult=True)
def pytest_tokenpower_meters(source: str) -> Sequence[Meter] | None:
    """Meters for ``--energy-source=SOURCE``, or None for a source that is not yours.

    Called once in each process: at the start of the run for a source that is not built in, else before the first
    energy test. Open no hardware here, that is what ``Meter.open`` is for. Raise
    :class:`~pytest_tokenpower.errors.MeterUnavailable` where the source is yours and this machine has no such meter.
    """


@pytest.hookspec
def pytest_tokenpower_engines() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Engines of yours by name, each as ``module:name`` of what is called with a model and the options.

    ``EngineSpec("name", ...)`` then starts it. What is called returns a
    :class:`~pytest_tokenpower.engines.Engine` and is imported when it is used, for isolated engines in their
    own process. Called whenever an engine is looked up, and never where no test does so. A name that this package or
    another plugin has is refused.
    """


@pytest.hookspec(firstresult=True)
def pytest_tokenpower_count_tokens(
    result: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TokenCount | None:
    """Tokens of one execution of a workload, from what it returned and was called with; None for what you don't know.

    Called after the round's window has closed, before the built-in counters.
    """
