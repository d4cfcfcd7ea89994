"""Phases from the times that vLLM puts on its request outputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.engines.request_metrics import steps_from_request_metrics


def output(scheduled: float, first: float, last: float, tokens: int = 16) -> SimpleNamespace:
    return SimpleNamespace(
        metrics=SimpleNamespace(scheduled_ts=scheduled, first_token_ts=first, last_token_ts=last),
        outputs=[SimpleNamespace(token_ids=[0] * tokens)],
    )


def test_one_prefill_step_then_decode() -> None:
    windows = steps_from_request_metrics([output(10.0, 10.5, 12.0), output(10.0, 10.5, 12.0)])
    assert windows is not None
    assert windows.prefill == (10_000_000_000, 10_500_000_000)
    assert windows.decode == (10_500_000_000, 12_000_000_000)
    assert not windows.mixed


def test_a_request_that_decodes_while_another_is_prefilled_mixes_the_phases() -> None:
    windows = steps_from_request_metrics([output(10.0, 10.2, 12.0), output(10.1, 10.5, 12.3)])
    assert windows is not None
    assert windows.mixed
    assert windows.prefill == (10_000_000_000, 10_500_000_000)
    assert windows.decode_end_ns == 12_300_000_000


def test_requests_of_one_token_never_decode() -> None:
    windows = steps_from_request_metrics([output(10.0, 10.2, 10.2, 1), output(10.0, 10.5, 10.5, 1)])
    assert windows is not None
    assert not windows.mixed
    assert windows.decode == (10_500_000_000, 10_500_000_000)


def test_a_single_output_is_taken_too() -> None:
    assert steps_from_request_metrics(output(1.0, 2.0, 3.0)) == steps_from_request_metrics([output(1, 2, 3)])


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        None,
        "text",
        3,
        {"usage": {}},
        [SimpleNamespace(metrics=None, outputs=[])],
        [output(1.0, 2.0, 3.0), SimpleNamespace()],
        [output(0.0, 2.0, 3.0)],
        [output(2.0, 1.0, 3.0)],
        [output(float("nan"), 1.0, 3.0)],
        [output(True, 2.0, 3.0)],
    ],
)
def test_no_phases_without_all_times(outputs: object) -> None:
    assert steps_from_request_metrics(outputs) is None


@given(
    st.lists(
        st.tuples(st.floats(1, 100), st.floats(0, 50), st.floats(0, 50)).map(
            lambda t: output(t[0], t[0] + t[1], t[0] + t[1] + t[2])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_windows_cover_every_request(outputs: list[SimpleNamespace]) -> None:
    windows = steps_from_request_metrics(outputs)
    assert windows is not None
    assert windows.prefill_start_ns <= windows.prefill_end_ns <= windows.decode_end_ns
    assert windows.prefill_start_ns == round(min(o.metrics.scheduled_ts for o in outputs) * 1e9)
    assert windows.decode_end_ns == round(max(o.metrics.last_token_ts for o in outputs) * 1e9)
    assert windows.mixed == (len({o.metrics.first_token_ts for o in outputs}) > 1)
