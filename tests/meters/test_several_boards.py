"""Several boards at once, and rounds that lie in each other: the sum, and each, against the exact integrals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.rounds import NO_DEVICE, round_records
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.meters.simulation.scenario import Board, Fault
from pytest_tokenpower.meters.timeline import Timeline
from tests.support.virtual import SECOND, WORK, Measured, measure, work

IDS = tuple(f"GPU-{number}" for number in range(3))
CURVES = (WORK, work((0.4, 90), (0.9, 600), (0.35, 310)), work((2.3, 250), (0.3, 500)))
RUN = measure(
    boards=[Board(uuid=uuid, power=curve) for uuid, curve in zip(IDS, CURVES, strict=True)], seconds=12
)


def exact(run: Measured, board: int, window: RoundWindow) -> float:
    return run.boards.joules(board, window.start_ns, window.end_ns)


moments = st.floats(0.9, 11.9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(moments, moments).filter(lambda w: abs(w[0] - w[1]) > 0.5), min_size=1, max_size=6))
def test_rounds_in_any_order_and_overlap_have_the_joules_of_each_board_and_their_sum(
    spans: list[tuple[float, float]],
) -> None:
    # Hypothesis draws nested, overlapping and separate ones; a whole round around them all is added.
    windows = [RUN.window(min(span), abs(span[1] - span[0])) for span in [*spans, (0.9, 11.9)]]
    records = RUN.records(windows)
    alone = [round_records(RUN.timeline, [device], windows) for device in RUN.devices]
    for at, (window, record) in enumerate(zip(windows, records, strict=True)):
        assert record.reasons == ()
        assert record.joules is not None
        assert record.stderr_joules is not None
        assert tuple(record.device_joules) == IDS
        each = [record.device_joules[uuid] or 0.0 for uuid in IDS]
        assert record.joules == pytest.approx(sum(each), rel=1e-12)
        assert abs(record.joules - RUN.truth(window)) <= 4 * record.stderr_joules + 0.002 * record.joules
        for board, joules in enumerate(each):
            truth = exact(RUN, board, window)
            assert alone[board][at].joules == joules
            assert abs(joules - truth) <= 4 * (alone[board][at].stderr_joules or 0.0) + 0.002 * truth
        errors = [of_board[at].stderr_joules or math.nan for of_board in alone]
        assert record.stderr_joules == pytest.approx(math.hypot(*errors), rel=1e-12)


def test_a_round_inside_another_takes_nothing_from_it() -> None:
    outer, inner = RUN.window(2, 6), RUN.window(4, 1)
    alone = RUN.records([outer])
    assert RUN.records([outer, inner])[0] == alone[0]
    before, after = RUN.window(2, 2), RUN.window(5, 3)
    parts = [record.joules or math.nan for record in RUN.records([before, inner, after])]
    assert sum(parts) == pytest.approx(alone[0].joules, rel=1e-9)


def test_one_board_that_fails_leaves_no_sum_and_the_others() -> None:
    boards = [Board(uuid=uuid, power=WORK) for uuid in IDS[:2]]
    run = measure(Fault(kind="lost", board=1, from_s=5.0), boards=boards, seconds=8)
    [record] = run.records([run.window(6, 1)])
    assert record.joules is None
    assert record.device_joules[IDS[0]] is not None
    assert record.device_joules[IDS[1]] is None
    assert all(IDS[1] in reason for reason in record.reasons)


def test_without_a_device_there_is_no_energy_and_it_is_not_zero() -> None:
    window = RoundWindow(0, SECOND, TokenCount(1, 1))
    [record] = round_records(Timeline(), [], [window])
    assert (record.joules, record.stderr_joules, record.peak_watts) == (None, None, None)
    assert record.reasons == (NO_DEVICE,)
