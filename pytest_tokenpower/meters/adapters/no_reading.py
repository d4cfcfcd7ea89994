"""Values that stand for "no reading": counted as power or energy they would be watts that nobody drew."""

from __future__ import annotations

from typing import cast

_SHORT = frozenset({0x7FFF, 0xFFFF})
_LONG = frozenset({0x7FFFFFFF, 0xFFFFFFFF})
"""Registers of 16 and of 32 bits that were never written, signed or not. Only in whole watts are the short ones no
power: 65.535 W, in milliwatts, is what many a board draws."""

_DCGM_WATTS = frozenset({0x7FFFFFF0 + code for code in range(16)})
_DCGM_WIDE = frozenset({float(0x7FFFFFFFFFFFFFF0), *(float(2**47 + code) for code in range(16))})
"""DCGM's blanks ("not found", "not supported", "not permissioned") as 64-bit integers and floats (dcgm_structs.h)."""

_MOST_WATTS = 4e6
"""In milliwatts it is a number of 32 bits, as a timeline keeps it."""

_MOST_COUNTED = float(2**63 - 2**11)
"""A counter of 64 bits that is all ones, signed or not."""


def is_watts(value: object) -> bool:
    """Whether a value in watts can be a power that something draws: finite, above zero, and no blank."""
    return _number(value) and cast("float", value) < _MOST_WATTS and value not in _SHORT | _LONG | _DCGM_WATTS


def is_fine_power(value: object) -> bool:
    """As :func:`is_watts`, for a value in milliwatts or microwatts."""
    return _number(value) and value not in _LONG


def is_counted(value: object) -> bool:
    """Whether a value can be that of an energy counter; small registers' all ones are values that it passes."""
    return _number(value)


def _number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Also false for nan, and for integers that no float holds.
    return 0 < value < _MOST_COUNTED and value not in _DCGM_WIDE
