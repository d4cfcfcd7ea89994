"""Which requests are due: in order, in time, within the limit, and all of them in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.engines._arrivals import Admission
from pytest_tokenpower.errors import EngineError
from pytest_tokenpower.workloads.arrivals import AllAtOnce, Arrivals, Concurrency, Poisson
from tests.support.contract import Nobody

some_arrivals: st.SearchStrategy[Arrivals] = st.one_of(
    st.just(AllAtOnce()),
    st.builds(Concurrency, st.integers(1, 5)),
    st.builds(Poisson, st.floats(0.1, 100.0), st.integers(0, 9)),
)


@given(some_arrivals, st.integers(1, 12), st.data())
def test_every_request_is_let_in_once_when_it_may(
    arrivals: Arrivals, count: int, data: st.DataObject
) -> None:
    admission, due, now = Admission(arrivals, count), arrivals.seconds(count), 0.0
    taken: list[int] = []
    while not admission.done:
        taken += admission.take(now)
        assert all(due[index] <= now for index in taken)
        assert admission.unfinished <= (arrivals.limit or count)
        wait = admission.wait_s(now)
        if wait is None:
            assert admission.unfinished
        if admission.unfinished and (wait is None or data.draw(st.booleans())):
            admission.finished(data.draw(st.integers(1, admission.unfinished)))
        elif wait is not None:
            assert wait > 0  # who was due has been let in
            now = due[len(taken)]
    assert taken == list(range(count))


def test_arrivals_that_never_end_are_refused() -> None:
    with pytest.raises(EngineError, match="a limit of 0: there must be a time for each"):
        Admission(Nobody(), 3)
