"""Joules per token of a service: exact where the counters tell, with an honest error, refused otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.analysis.service_range import increase, service_figure

WATTS, PACE = 400.0, 1000.0


def scrapes(
    first_s: float, last_s: float, step_s: float, rate: float, *, zero_s: float = 0.0
) -> list[tuple[int, float]]:
    return [(round(t * 1000), rate * (t - zero_s)) for t in np.arange(first_s, last_s + 1e-9, step_s)]


@given(
    step_s=st.sampled_from([1.0, 5.0, 15.0]),
    offsets=st.lists(st.floats(0.0, 0.9), min_size=3, max_size=3),
    duration_s=st.integers(300, 4000),
)
def test_steady_counters_give_the_figure_however_scrapes_fall(
    step_s: float, offsets: list[float], duration_s: int
) -> None:
    energy = {
        str(at): scrapes(1000 + each * step_s, 1000 + duration_s, step_s, WATTS)
        for at, each in enumerate(offsets[:2])
    }
    tokens = {"server": scrapes(1000 + offsets[2] * step_s, 1000 + duration_s, step_s, PACE)}
    found = service_figure(energy, tokens, 1.0)
    assert found.joules_per_token == pytest.approx(2 * WATTS / PACE, rel=1e-4)
    assert found.stderr / found.joules_per_token < 1.5 * step_s / duration_s
    assert found.seconds > duration_s - 4 * step_s


def test_the_error_holds_the_truth_for_stale_exporters() -> None:
    """The exporter reads every 30 s and is scraped each 5 s: the value at an edge may be 30 s old."""
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        phase = random.uniform(0, 30)
        rows = [
            (round(1000 * t), WATTS * (30 * math.floor((t - phase) / 30) + phase))
            for t in np.arange(60, 1200, 5.0)
        ]
        start, end = random.uniform(90, 150), random.uniform(900, 1100)
        found = increase(rows, round(1000 * start), round(1000 * end))
        inside += abs(found.value - WATTS * (end - start)) < 1.96 * found.stderr
    assert inside >= 270


def test_a_counter_that_begins_anew_counts_on_and_widens_the_error() -> None:
    steady = scrapes(0, 600, 10, WATTS)
    reset = [*scrapes(0, 300, 10, WATTS), *scrapes(310, 600, 10, WATTS, zero_s=304)]
    whole, broken = (increase(rows, 0, 600_000) for rows in (steady, reset))
    assert whole.value == pytest.approx(WATTS * 600)
    # Four seconds between the last sample and the restart are lost.
    assert broken.value == pytest.approx(WATTS * 596)
    assert (whole.resets, broken.resets) == (0, 1)
    assert broken.stderr > whole.stderr
    assert abs(broken.value - whole.value) < 1.96 * broken.stderr


def test_servers_come_and_go() -> None:
    energy = {"GPU-1": scrapes(0, 1000, 5, WATTS)}
    first = scrapes(0, 400, 5, PACE)
    second = scrapes(452, 1000, 5, PACE, zero_s=450)
    found = service_figure(energy, {"a": first, "b": second}, 1.0)
    assert found.tokens.value == pytest.approx(PACE * (400 + 548), rel=0.006)
    assert found.joules.value == pytest.approx(WATTS * 1000, rel=0.01)


@pytest.mark.parametrize(
    ("energy", "tokens", "said"),
    [
        ({}, {"a": scrapes(0, 100, 1, PACE)}, "no energy counter"),
        ({"GPU-1": scrapes(0, 100, 1, WATTS)}, {}, "no token counter"),
        (
            {"GPU-1": scrapes(0, 1, 1, WATTS)},
            {"a": scrapes(0, 100, 1, PACE)},
            "GPU-1: fewer than three samples",
        ),
        (
            {"GPU-1": scrapes(0, 900, 1, WATTS), "GPU-2": scrapes(0, 400, 1, WATTS)},
            {"a": scrapes(0, 900, 1, PACE)},
            "GPU-2 has samples for 400 of 900 s",
        ),
        ({"GPU-1": scrapes(0, 100, 1, 0.0)}, {"a": scrapes(0, 100, 1, PACE)}, "missing, not zero"),
        ({"GPU-1": scrapes(0, 100, 1, WATTS)}, {"a": scrapes(0, 100, 1, 0.0)}, "no token was generated"),
        (
            {"GPU-1": scrapes(0, 900, 1, WATTS), "GPU-2": scrapes(0, 900, 1, 0.0)},
            {"a": scrapes(0, 900, 1, PACE)},
            "GPU-2: its energy counter does not move in this range: missing, not zero",
        ),
        (
            {"GPU-1": [(ms, min(joules, WATTS * 500)) for ms, joules in scrapes(0, 900, 1, WATTS)]},
            {"a": scrapes(0, 900, 1, PACE)},
            "GPU-1: its energy counter stands still for the last 400 s",
        ),
        (
            # A server that goes on under another label would be counted twice.
            {"GPU-1": scrapes(0, 900, 1, WATTS)},
            {"a": scrapes(0, 400, 1, PACE), "b": scrapes(401, 900, 1, PACE)},
            "b appears 401 s after the beginning, and has counted 401000 tokens by then",
        ),
    ],
)
def test_what_is_not_known_is_refused(
    energy: dict[str, list[tuple[int, float]]], tokens: dict[str, list[tuple[int, float]]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        service_figure(energy, tokens, 1.0)


def test_a_counter_that_stood_still_before_is_held_to_its_end_too() -> None:
    at = range(0, 7200, 15)
    tokens = {"server": [(t * 1000, 10.0 * t) for t in at]}
    stood = [(t * 1000, 300.0 * (1000 if 1000 <= t < 3000 else min(t, 6000))) for t in at]
    with pytest.raises(ValueError, match="stands still for the last"):
        service_figure({"gpu": stood}, tokens, 1.0)
