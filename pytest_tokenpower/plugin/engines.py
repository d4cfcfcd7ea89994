"""What plugins and conftest files say of engines of their own, checked."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_tokenpower.engines.registry import ENGINES, is_reference
from pytest_tokenpower.errors import UsageError


def added_engines(asker: pytest.Item | pytest.Collector | pytest.Config) -> Mapping[str, str]:
    """Return the engines of every ``pytest_tokenpower_engines``, asked anew.

    Conftest files are found as pytest collects.

    A test, or a module as it is imported, has those of the conftest files in its folder and above; a config, those of
    all.

    Raises UsageError for a name that is taken and for what is no reference, naming the plugin.
    """
    found: dict[str, str] = {}
    givers: dict[str, str] = dict.fromkeys(ENGINES, "pytest-tokenpower itself")
    hooks = asker.hook if isinstance(asker, pytest.Config) else asker.ihook
    for hook in hooks.pytest_tokenpower_engines.get_hookimpls():
        if hook.wrapper or hook.hookwrapper:
            continue
        engines = hook.function()
        where = f"{hook.plugin_name}: pytest_tokenpower_engines"
        if not isinstance(engines, Mapping):
            raise UsageError(
                f"{where} returned {engines!r}: it must return a mapping of names to 'module:name'"
            )
        for name, reference in engines.items():
            if not isinstance(name, str) or not name or ":" in name:
                raise UsageError(f"{where} names an engine {name!r}: a name is text without a colon")
            if not isinstance(reference, str) or not is_reference(reference):
                raise UsageError(
                    f"{where} has {reference!r} for the engine {name!r}: give 'module:name' of what is called with the "
                    "model and the options"
                )
            if name in givers:
                raise UsageError(
                    f"{where} names an engine {name!r}, which {givers[name]} has already: choose another name"
                )
            found[name], givers[name] = reference, str(hook.plugin_name)
    return found
