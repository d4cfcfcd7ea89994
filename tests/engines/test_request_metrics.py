"""Phases from the times that vLLM puts on its request outputs."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.engines.phase_marks import joined, notes_of, phases_of
from pytest_tokenpower.engines.protocol import Step
from pytest_tokenpower.engines.vllm.requests import steps_from_request_metrics, stretches_from_request_metrics
from tests.support.projects import Project


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


def staggered(
    waves: list[tuple[float, list[int], int]], tokens: int, pace: float
) -> tuple[list[SimpleNamespace], list[Step]]:
    """Return a batch whose requests came in waves of (seconds of its prefill step, prompt lengths.

    Decode steps before the
    next one): what vLLM says of each request, and what the steps were.
    """
    now, steps = 10.0, list[Step]()
    requests: list[dict[str, Any]] = []

    def step(seconds: float, prompts: list[int]) -> None:
        nonlocal now
        start, now = now, now + seconds
        running = [each for each in requests if len(each["times"]) < tokens]
        for each in running:
            each["times"].append(now)
        requests.extend({"scheduled": start, "prompt": prompt, "times": [now]} for prompt in prompts)
        steps.append(Step(round(start * 1e9), round(now * 1e9), sum(prompts), len(running)))

    for seconds, prompts, decodes in waves:
        step(seconds, prompts)
        for _ in range(decodes):
            step(pace, [])
    while any(len(each["times"]) < tokens for each in requests):
        step(pace, [])
    outputs = [
        SimpleNamespace(
            metrics=SimpleNamespace(
                scheduled_ts=each["scheduled"],
                first_token_ts=each["times"][0],
                last_token_ts=each["times"][-1],
            ),
            outputs=[SimpleNamespace(token_ids=[0] * tokens)],
            prompt_token_ids=[5] * each["prompt"],
            num_cached_tokens=0,
        )
        for each in requests
    ]
    return outputs, steps


WAVES = st.lists(
    st.tuples(st.floats(0.02, 2.0), st.lists(st.integers(1, 900), min_size=1, max_size=6), st.just(0)),
    min_size=2,
    max_size=5,
)


@given(WAVES, st.integers(8, 40), st.floats(0.005, 0.05))
def test_overlapping_phases_come_out_as_the_steps_were(
    waves: list[tuple[float, list[int], int]], tokens: int, pace: float
) -> None:
    """Requests that come in one after the other, as they reach an engine in a process of its own."""
    outputs, steps = staggered(waves, tokens, pace)
    stretches = stretches_from_request_metrics(outputs)
    assert stretches[:-1] == tuple(steps[: len(waves)])
    rest = steps[len(waves) :]
    assert stretches[-1] == Step(
        rest[0].start_ns, rest[-1].end_ns, 0, sum(step.generated_tokens for step in rest)
    )


def test_decode_steps_between_two_prefills_are_counted_where_they_were() -> None:
    outputs, steps = staggered([(0.5, [100], 3), (0.8, [200, 300], 2), (0.4, [50], 0)], 16, 0.02)
    first, second, third, decode = stretches_from_request_metrics(outputs)
    assert (first.prompt_tokens, first.generated_tokens) == (100, 0)
    assert (second.prompt_tokens, third.prompt_tokens, decode.prompt_tokens) == (500, 50, 0)
    # The first request had 3 + 1 and 2 + 1 tokens by then, dealt out evenly; the next two had 3 each.
    assert (second.generated_tokens, third.generated_tokens) == (3, 4 + 2 * 3)
    all_steps = sum(step.generated_tokens for step in steps)
    assert second.generated_tokens + third.generated_tokens + decode.generated_tokens == all_steps


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.5, 0.8, 1.0, 2.0]), st.floats(0.01, 3), st.integers(1, 30), st.integers(1, 900)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_token_is_in_one_stretch(requests: list[tuple[float, float, int, int]]) -> None:
    outputs = [
        output(10.0, 10.0 + first, 10.0 + first + lasts, tokens) for first, lasts, tokens, _ in requests
    ]
    for each, (_, _, _, prompt) in zip(outputs, requests, strict=True):
        each.prompt_token_ids = [5] * prompt
    stretches = stretches_from_request_metrics(outputs)
    if not stretches:
        latest = max(first for first, _, _, _ in requests)
        assert all(tokens == 1 for first, _, tokens, _ in requests if first == latest)
        return
    assert sum(each.prompt_tokens for each in stretches) == sum(prompt for _, _, _, prompt in requests)
    assert sum(each.generated_tokens for each in stretches) == sum(tokens - 1 for _, _, tokens, _ in requests)
    assert min(each.generated_tokens for each in stretches) >= 0
    assert all(one.end_ns == two.start_ns for one, two in pairwise(stretches))
    assert stretches[-1].prompt_tokens == 0


@pytest.mark.parametrize("lacking", ["prompt_token_ids", "decode", "one completion"])
def test_overlapping_phases_without_prompts_or_decoding_are_not_estimated(lacking: str) -> None:
    outputs, _ = staggered([(0.5, [100], 0), (0.8, [200], 0)], 1 if lacking == "decode" else 8, 0.02)
    if lacking == "prompt_token_ids":
        outputs[0].prompt_token_ids = None
    if lacking == "one completion":
        outputs[0].outputs *= 2
    assert stretches_from_request_metrics(outputs) == ()


def test_what_the_prefix_cache_held_was_not_prefilled() -> None:
    outputs, _ = staggered([(0.5, [100], 0), (0.8, [200], 0)], 8, 0.02)
    outputs[0].num_cached_tokens, outputs[1].num_cached_tokens = 96, 200
    assert [step.prompt_tokens for step in stretches_from_request_metrics(outputs)] == [4, 1, 0]


def test_phases_of_overlapping_requests_are_estimates() -> None:
    outputs, _ = staggered([(0.5, [100], 0), (0.8, [200], 0)], 8, 0.02)
    found = phases_of(outputs)
    assert [each.phase for each in found] == ["prefill", "mixed", "decode"]
    assert all(each.estimated for each in found)
    assert notes_of(outputs) == {}


def test_phases_of_a_round_are_those_of_all_its_executions_or_none() -> None:
    first, second = phases_of(output(1.0, 1.5, 2.0)), phases_of(output(2.0, 2.5, 3.0))
    assert joined([first, second]) == (*first, *second)
    assert joined([second, first]) == (*second, *first)
    assert joined([first, ()]) == joined([()]) == joined([]) == ()
    assert joined([first, phases_of(output(1.9, 2.5, 3.0))]) == ()


def test_outputs_without_times_say_how_to_get_them() -> None:
    without = [SimpleNamespace(metrics=None, outputs=[SimpleNamespace(token_ids=[0])])] * 2
    assert "disable_log_stats=False" in str(notes_of(without)["phases.absent"])
    others: list[object] = [None, [], "text", {"usage": {}}, TokenCount(1, 1), [output(1.0, 2.0, 3.0)]]
    for result in others:
        assert notes_of(result) == {}


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


WITH_TIMES = """
from types import SimpleNamespace

def generate(completions=1):
    queued = time.monotonic()
    time.sleep(0.1)
    def output(first):
        times = dict(queued_ts=queued, scheduled_ts=queued, first_token_ts=queued + first, last_token_ts=queued + 0.1)
        outputs = [SimpleNamespace(token_ids=[0] * 11)] * completions
        return SimpleNamespace(metrics=SimpleNamespace(**times), outputs=outputs, prompt_token_ids=[5] * 50)
    return [output(0.05), output(0.09)]

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, ttft_ms=10, tpot_ms=50)
def test_called(energy):
    energy(generate)

def test_block(energy):
    with energy.measure() as window:
        window.count(generate())

@quick
def test_several_completions(energy):
    energy(generate, 2)
"""


def test_latencies_are_read_off_what_any_callable_returns(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    project.tests(WITH_TIMES)
    result, run = project.measure()
    result.assert_outcomes(passed=2, failed=1)
    called, block, several = run.measurements
    assert {one.against: one.kind for one in called.verdicts} == {
        "ttft_p90_seconds": "over budget",
        "tpot_p90_seconds": "passed",
    }
    for one in (called, block):
        assert one.figures["ttft_p50_seconds"].value == pytest.approx(0.07)
        assert one.figures["tpot_p50_seconds"].value == pytest.approx(0.003)
    # vLLM has one set of times for all completions of a request.
    assert "ttft_p50_seconds" not in several.figures
    result.stdout.fnmatch_lines(["test * TTFT ms * TPOT ms *", "test_called * 70/* 3/* OVER BUDGET"])
    result.stdout.fnmatch_lines(["*TTFT, TPOT: time to the first*"])


WITHOUT = """
from types import SimpleNamespace

@quick
def test_plain(energy):
    def generate():
        time.sleep(0.02)
        one = SimpleNamespace(token_ids=[0] * 100)
        return [SimpleNamespace(metrics=None, outputs=[one], prompt_token_ids=[5] * 50, num_cached_tokens=48)]
    energy(generate)
"""


def test_the_report_says_what_the_outputs_do_not_tell(project: Project) -> None:
    project.tests(WITHOUT)
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "test_plain: prefill and decode not told apart: vLLM's outputs have no times, *disable_log_stats=False*",
            "test_plain: * % of the prompt tokens came from a prefix cache and were not prefilled: switch it off*",
        ]
    )
    assert {one.cached_prompt_tokens // one.repeats for one in run.measurements[0].rounds} == {48}
    assert "prefill_joules" not in run.measurements[0].figures
