"""The plugin's markers, and power_budget read and checked: the limits of a test. Every pytest run imports this."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_tokenpower.core.denominators import PER
from pytest_tokenpower.core.settings import DEFAULT_MAX_ROUNDS, Limits, fraction
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.plugin.options import checked_key_ignore

MARKER = (
    "power_budget(joules_per_token=None, joules_per_prompt_token=None, joules_per_total_token=None, "
    "joules_per_response=None, joules=None, mean_watts=None, peak_watts=None, ttft_ms=None, tpot_ms=None, "
    "regression=None, per=None, min_rounds=6, max_rounds=30, max_seconds=120, key_ignore=(), prefix_cache=False, "
    "quality=None): limits of an energy test; regression is the rise over the baseline that fails it, such as '3%', "
    "of joules per `per`: token (default where tokens are generated), prompt_token, total_token or response; "
    "ttft_ms and tpot_ms limit what 90 of 100 requests wait; prefix_cache=True: prompts that it holds are meant; "
    "quality: the score that energy.quality must not be below"
)

CELL_MARKER = (
    "energy_cell(**axes): a cell of a suite, with its values; -m 'energy_cell(batch=8)' selects by them"
)

SOAK_MARKER = (
    "energy_soak(hours=24, max_drift=None): soak the test's work for so long before its rounds; max_drift, such as "
    "'2%', fails it where joules per token surely drift by more"
)


def read_budget(item: pytest.Item) -> Limits:
    """Return the limits of a test; a marker nearer to it overrides one of its class or module, argument by argument.

    Raises UsageError that names the test, the argument and the valid ones.
    """
    valid = Limits._fields
    arguments: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("power_budget"))):
        if marker.args:
            raise UsageError(
                f"{item.nodeid}: power_budget takes its arguments by name, not {', '.join(map(repr, marker.args))}: "
                f"{', '.join(valid)}"
            )
        for name, value in marker.kwargs.items():
            if name not in valid:
                raise UsageError(
                    f"{item.nodeid}: power_budget has no argument {name!r}; the valid ones are {', '.join(valid)}"
                )
            try:
                arguments[name] = _budget_argument(name, value)
            except UsageError as error:
                raise UsageError(f"{item.nodeid}: power_budget({name}={value!r}): {error}") from None
    if "max_rounds" not in arguments and arguments.get("min_rounds", 0) > DEFAULT_MAX_ROUNDS:
        arguments["max_rounds"] = arguments["min_rounds"]
    budget = Limits(**arguments)
    if budget.max_rounds < budget.min_rounds:
        raise UsageError(
            f"{item.nodeid}: power_budget(max_rounds={budget.max_rounds}): must be at least "
            f"min_rounds, {budget.min_rounds}"
        )
    return budget


def _budget_argument(name: str, value: Any) -> Any:
    if name == "regression":
        return fraction(None, value)
    if name == "per":
        if value not in PER:
            raise UsageError(f"must be one of {', '.join(PER)}")
        return value
    if name == "prefix_cache":
        if not isinstance(value, bool):
            raise UsageError("must be True, where prompts from a prefix cache are meant, or False")
        return value
    if name in ("min_rounds", "max_rounds"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError("must be an integer of at least 1")
        return value
    if name == "key_ignore":
        names = (
            (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else None
        )
        if names is None or not all(isinstance(part, str) for part in names):
            raise UsageError("must be a name of a key field, or a list of names")
        return checked_key_ignore(names)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UsageError("must be a positive number")
    return float(value)
