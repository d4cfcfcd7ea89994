"""Every error that this package raises on purpose, each written for the person who reads it."""

from __future__ import annotations


class TokenPowerError(Exception):
    """Base of this package's errors: the message says what happened, to what, and what to do."""


class UsageError(TokenPowerError):
    """An option, ini value, marker or call of a fixture is malformed."""


class MeterError(TokenPowerError):
    """A meter could not be read. The readings around it become invalid; they never become small."""


class MeterLost(MeterError):
    """A meter will not read again in this run: to go on measuring is of no use."""


class MeterUnavailable(MeterError):
    """There is no such meter on this machine, or it may not be read; the message says how to get at it."""


class TokenCountError(TokenPowerError):
    """The tokens of a round could not be counted from what the workload returned."""


class EngineError(TokenPowerError):
    """An inference engine could not be loaded, crashed, or did not answer."""


class StoreError(TokenPowerError):
    """The store cannot be read or written."""


class HistoryError(TokenPowerError):
    """Git history cannot answer which runs are the baseline (unknown ref, shallow clone, no repository)."""
