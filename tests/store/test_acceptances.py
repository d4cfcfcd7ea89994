"""Acceptances as values: their TOML, what they cover, and which runs count on a line."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.records import VerdictRecord
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.acceptance import acceptance_notes, allowed_change
from pytest_tokenpower.store.acceptances import (
    Acceptance,
    Acceptances,
    PlacedAcceptance,
    decode_acceptance,
    encode_acceptance,
)
from pytest_tokenpower.store.baseline import ComparableRuns
from pytest_tokenpower.store.committed import committed_file
from pytest_tokenpower.store.explain import accepted_percent
from pytest_tokenpower.store.git import ACCEPTED_FOLDER

LINE = tuple(f"{at:x}" * 40 for at in range(10))
DAY = date(2026, 1, 31)

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
shares = st.integers(0, 100_000).map(lambda number: number / 10_000)


def placed(added: int, begins: int, *, up_to: float = 0.08, current: bool = True) -> PlacedAcceptance:
    return PlacedAcceptance(Acceptance("a.py::t", up_to, "why", DAY), "f.toml", added, begins, current)


@given(texts, shares, texts, st.dates(min_value=date(1900, 1, 1)), st.sampled_from(["", "a" * 40]))
def test_it_survives_its_toml(test: str, share: float, reason: str, expires: date, since: str) -> None:
    found = decode_acceptance(encode_acceptance(Acceptance(test, share, reason, expires, since)), source="x")
    assert (found.test, found.reason, found.expires, found.since) == (test, reason, expires, since)
    assert found.up_to == pytest.approx(share, rel=1e-5)


@given(texts, texts)
def test_each_test_has_a_file_of_its_own(one: str, other: str) -> None:
    assert (committed_file(ACCEPTED_FOLDER, one) == committed_file(ACCEPTED_FOLDER, other)) is (one == other)
    assert committed_file(ACCEPTED_FOLDER, one).count("/") == 2


def test_an_unknown_word_in_it_is_an_error() -> None:
    text = encode_acceptance(Acceptance("t", 0.08, "why", DAY)) + "untill = 2026-05-01\n"
    with pytest.raises(UsageError, match=r"x\.toml is no acceptance .*untill"):
        decode_acceptance(text, source="x.toml")


def test_it_covers_a_test_and_its_parameters_and_no_other() -> None:
    whole = Acceptance("a.py::t", 0.08, "why", DAY)
    assert [whole.covers(test) for test in ("a.py::t", "a.py::t[x]", "a.py::t2", "b/a.py::t")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not Acceptance("a.py::t[x]", 0.08, "why", DAY).covers("a.py::t")


@pytest.mark.parametrize(
    ("added", "begins", "newest", "holds"),
    [
        (-1, -1, 0, True),  # Only in the work tree.
        (2, 2, 3, True),  # On the line; nothing stored since.
        (2, 2, 2, False),
        (2, 2, 0, False),
        (-1, 4, 3, False),  # Since an earlier commit, which has a run.
        (-1, 4, 5, True),
        (2, 2, None, True),
    ],
)
def test_it_holds_until_a_run_at_its_level_is_stored(
    added: int, begins: int, newest: int | None, holds: bool
) -> None:
    found = Acceptances([placed(added, begins)], LINE)
    commit = None if newest is None else LINE[newest]
    assert (found.allowance(commit, "a.py::t", today=DAY) is not None) is holds


def test_it_holds_through_its_last_day_where_its_file_is() -> None:
    here = Acceptances([placed(-1, -1)], LINE)
    assert here.allowance(LINE[0], "a.py::t", today=DAY)
    assert not here.allowance(LINE[0], "a.py::t", today=date(2026, 2, 1))
    assert not Acceptances([placed(-1, -1, current=False)], LINE).allowance(LINE[0], "a.py::t", today=DAY)


@pytest.mark.parametrize(
    ("place", "change", "counts"),
    [
        (3, 0.07, True),
        (4, 0.07, True),
        (5, 0.07, False),
        (2, 0.07, False),
        (1, 0.07, False),
        (3, 0.09, False),
    ],
)
def test_runs_between_the_rise_and_its_acceptance_count_up_to_its_size(
    place: int, change: float, counts: bool
) -> None:
    found = Acceptances([placed(2, 4)], LINE)
    verdicts = (VerdictRecord("regressed", f"main@{LINE[8][:7]}", change=change, baseline_runs=("x",)),)
    assert found.counts(verdicts, LINE[place][:12], "a.py::t") is counts
    assert not found.counts(verdicts, LINE[place][:12], "b.py::t")


@given(shares, shares)
def test_the_limit_is_the_larger_one(limit: float, up_to: float) -> None:
    stored = ComparableRuns("main", (), acceptance=placed(-1, -1, up_to=up_to))
    assert allowed_change(limit, stored) == max(limit, up_to)
    assert allowed_change(limit, ComparableRuns("main", ())) == limit


@given(st.floats(0.0001, 5))
def test_what_is_proposed_leaves_room_for_the_next_run(rise: float) -> None:
    assert rise + 0.01 <= accepted_percent(rise) / 100 + 1e-9 <= rise + 0.0201


def test_a_verdict_that_owes_nothing_to_it_is_left_as_it_is() -> None:
    stored = ComparableRuns("main@abc", (), acceptance=placed(-1, -1))
    assert acceptance_notes("passed", 0.01, 0.03, stored) == []
    assert acceptance_notes("passed", 0.2, 0.03, ComparableRuns("main@abc", ())) == []
