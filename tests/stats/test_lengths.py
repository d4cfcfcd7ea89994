"""Another length: exact where nothing differs, by the phases where it does, refused where it may not be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.stats.lengths import Counts, NotComparable, PhaseFigures, Reexpressed, at_lengths

counts = st.builds(Counts, st.floats(1, 4000), st.floats(1, 4000))


def test_a_token_more() -> None:
    old = PhaseFigures(Counts(512, 200), total=100.0, prefill=20.0)
    found = at_lengths(old, Counts(512, 201))
    assert isinstance(found, Reexpressed)
    before, after = 100.0 / 200, (20.0 + 80.0 * 201 / 200) / 201
    assert found.log_shift == pytest.approx(math.log(after / before))
    assert 0 < found.stderr < 0.001


@given(counts, st.floats(0.1, 100), st.floats(0, 1))
def test_equal_counts_are_exact(same: Counts, total: float, share: float) -> None:
    assert at_lengths(PhaseFigures(same, total, share * total, 1.0), same) == Reexpressed(0.0, 0.0)


@given(counts, st.floats(0.92, 1.08), st.floats(0.92, 1.08), st.floats(0, 1))
def test_there_and_back_is_nothing(old: Counts, fuller: float, longer: float, share: float) -> None:
    new = Counts(old.prefilled * fuller, old.generated * longer)
    there = at_lengths(PhaseFigures(old, 1.0, share), new)
    assert isinstance(there, Reexpressed)
    prefill, decode = share * fuller, (1 - share) * longer
    back = at_lengths(PhaseFigures(new, prefill + decode, prefill), old)
    assert isinstance(back, Reexpressed)
    assert there.log_shift + back.log_shift == pytest.approx(0.0, abs=1e-9)


def test_the_split_s_error_is_carried() -> None:
    sure, vague = (
        at_lengths(PhaseFigures(Counts(512, 200), 100.0, 50.0, error), Counts(512, 215))
        for error in (0.0, 10.0)
    )
    assert isinstance(sure, Reexpressed)
    assert isinstance(vague, Reexpressed)
    assert vague.stderr > sure.stderr


@pytest.mark.parametrize(
    ("new", "why"), [(Counts(512, 230), "15%"), (Counts(400, 200), "22%"), (Counts(512, 170), "15%")]
)
def test_too_far_apart(new: Counts, why: str) -> None:
    found = at_lengths(PhaseFigures(Counts(512, 200), 100.0, 20.0), new)
    assert isinstance(found, NotComparable)
    assert why in found.reason


def test_nothing_prefilled_tells_nothing_of_a_prefill() -> None:
    found = at_lengths(PhaseFigures(Counts(0, 200), 100.0, 0.0), Counts(10, 200))
    assert isinstance(found, NotComparable)
    assert isinstance(at_lengths(PhaseFigures(Counts(0, 200), 100.0, 0.0), Counts(0, 201)), Reexpressed)


def test_impossible_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="within"):
        at_lengths(PhaseFigures(Counts(1, 1), 1.0, 2.0), Counts(1, 1))
    with pytest.raises(ValueError, match="positive"):
        at_lengths(PhaseFigures(Counts(1, 1), 1.0, 0.5), Counts(1, 0))
