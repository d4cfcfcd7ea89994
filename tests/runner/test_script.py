"""The figures in the hand of a test or a script: energy.result, and measure() without pytest."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import pytest_tokenpower
from pytest_tokenpower import Result, TokenCount, measure
from pytest_tokenpower.core.records import Figure
from pytest_tokenpower.errors import MeterError, TokenCountError, UsageError
from pytest_tokenpower.runner.result import Quantity
from pytest_tokenpower.runner.script import Measurement
from tests.support.projects import Project

SECONDS = 0.25


def generate(generated: int = 100) -> TokenCount:
    """Return a model whose simulated board draws 300 W for as long as it takes."""
    time.sleep(SECONDS)
    return TokenCount(10, generated)


def check(result: Result, rounds: int, generated: int = 100) -> None:
    assert (result.valid, result.reason, result.provenance) == (True, "", "simulated")
    assert len(result.rounds) == rounds
    mean = sum(one.seconds / one.repeats for one in result.rounds) / rounds
    assert result.joules_per_token == pytest.approx(300 * mean / generated, rel=0.03)
    assert 0 < result.joules_per_token.stderr < 0.1 * result.joules_per_token
    assert result.figures["joules_per_token"] is result.joules_per_token


def test_the_block_is_a_window() -> None:
    with measure("simulated") as m:
        m.count(generate())
    check(m.result, 1)


def test_tokens_that_are_given_add_up() -> None:
    with measure("simulated", scope="gpu") as m:
        for _ in range(2):
            generate()
            m.tokens(prompt=0, generated=50)
    check(m.result, 1)


def counted(*results: object) -> int:
    """Return the generated tokens of a block in which these are counted."""
    with measure("simulated") as m:
        time.sleep(SECONDS)
        for each in results:
            m.count(each)
    return m.result.rounds[0].generated_tokens


def completion(id_: str) -> dict[str, Any]:
    return {"id": id_, "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "choices": [{}]}


def test_a_result_counts_once_in_a_block() -> None:
    one = completion("a")
    no_id = {"usage": one["usage"]}
    for given, said in (
        ([one, one], "a dict was counted twice (request 'a'): count each result once"),
        ([one, completion("a")], "a dict was counted twice (request 'a')"),
        ([one, [completion("b"), one]], "a list of dict was counted twice (request 'a')"),
        ([no_id, no_id], "a dict was counted twice: count each result once"),
    ):
        with pytest.raises(TokenCountError) as caught:
            counted(*given)
        assert f"measure(): in one energy.measure() block {said}" in str(caught.value)
    assert counted(one, completion("b"), no_id, dict(no_id), TokenCount(1, 1), TokenCount(1, 1)) == 18


def test_windows_in_a_block_are_its_rounds() -> None:
    with measure("simulated") as m:
        for _ in range(3):
            with m.measure() as window:
                window.count(generate())
            time.sleep(0.02)
        so_far = m.result
    check(m.result, 3)
    assert so_far.joules_per_token == m.result.joules_per_token


def test_rounds_of_a_callable_and_of_an_asynchronous_one() -> None:
    with measure("simulated", warmup_rounds=1, min_rounds=2, max_rounds=2) as m:
        assert m(generate, 200) == TokenCount(10, 200)
    check(m.result, 2, 200)

    async def chat() -> TokenCount:
        await asyncio.sleep(SECONDS)
        return TokenCount(10, 100)

    async def notebook() -> Result:
        with measure("simulated", warmup_rounds=1, min_rounds=2, max_rounds=2) as m:
            await m.async_run(chat)
        return m.result

    check(asyncio.run(notebook()), 2)


def test_a_comparison_has_its_verdict() -> None:
    with measure("simulated", warmup_rounds=0, min_rounds=4, max_rounds=4) as m:
        m.compare(baseline=lambda: generate(100), candidate=lambda: generate(200), at_least="20%")
    [verdict] = m.result.verdicts
    assert verdict.change == pytest.approx(-0.5, abs=0.05)
    check(m.result, 4, 200)


def nested() -> Iterator[object]:
    with measure("simulated") as m:
        yield m
        with measure("simulated"):
            pass


def in_a_thread() -> Iterator[object]:
    def other() -> None:
        with suppress(UsageError), measure("simulated") as m:
            m.tokens(prompt=0, generated=1)

    with measure("simulated") as m:
        yield m
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        m.tokens(prompt=0, generated=1)


def uncounted() -> Iterator[object]:
    with measure("simulated") as m:
        yield m


def nothing_generated() -> Iterator[object]:
    with measure("simulated") as m:
        yield m
        m.tokens(prompt=0, generated=0, responses=0)


def both() -> Iterator[object]:
    with measure("simulated") as m:
        yield m
        with m.measure() as window:
            window.count(generate())
        m.count(generate())


def twice() -> Iterator[object]:
    with measure("simulated", warmup_rounds=0, min_rounds=1, max_rounds=1) as m:
        yield m
        m(generate)
        m(generate)


def overlapping() -> Iterator[object]:
    with measure("simulated") as m:
        yield m
        with m.measure(), m.measure():
            pass


def test_work_that_generates_nothing_has_its_own_figures() -> None:
    with measure("simulated") as m:
        m.count(TokenCount(prompt=generate().generated, generated=0))
    assert m.result.valid
    assert m.result.joules_per_prompt_token > 0
    assert m.result.joules_per_total_token == m.result.joules_per_prompt_token
    assert m.result.joules_per_response == pytest.approx(100 * m.result.joules_per_prompt_token)
    with pytest.raises(MeterError, match=r"what was measured has .*joules_per_prompt_token"):
        _ = m.result.joules_per_token


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        (nested, UsageError, "while another of the same board was open"),
        (in_a_thread, UsageError, "while another of the same board was open"),
        (uncounted, TokenCountError, r"nothing says what was read .*: call m\.count\(result\)"),
        (nothing_generated, TokenCountError, "nothing says what was read"),
        (both, UsageError, "use one of both"),
        (twice, UsageError, r"called twice, .*: enter measure\(\) once more"),
        (overlapping, UsageError, "while another of the same board was open"),
    ],
)
def test_what_the_fixture_refuses_is_refused(block: object, error: type[Exception], words: str) -> None:
    running = block()  # type: ignore[operator]
    m = next(running)
    assert isinstance(m, Measurement)
    with pytest.raises(error, match=words):
        next(running)
    with suppress(UsageError):
        assert not m.result.valid
    # Nothing is left behind that would refuse the next one.
    with measure("simulated") as after:
        after.count(generate())
    check(after.result, 1)


def test_in_a_notebook_the_loop_that_runs_is_told_of() -> None:
    async def work() -> TokenCount:
        return generate()

    async def cell() -> None:
        with measure("simulated") as m:
            m(work)

    with pytest.raises(
        UsageError, match=r"work is asynchronous, and an event loop runs .*await m\.async_run\(work,"
    ):
        asyncio.run(cell())


def test_after_its_block_nothing_is_measured() -> None:
    with measure("simulated") as m:
        m.count(generate())
    for late in (lambda: m(generate), lambda: m.count(generate())):
        with pytest.raises(UsageError, match="its block has ended: measure and count inside it"):
            late()


def test_a_refusal_that_is_swallowed_is_in_the_result() -> None:
    with measure("simulated") as m, m.measure() as window:
        window.count(generate())
        with suppress(TokenCountError):
            window.count("words")
    assert not m.result.valid
    assert "the tokens of a str cannot be counted" in m.result.reason
    with pytest.raises(MeterError, match=r"no joules per token: measure\(\): the tokens of a str"):
        _ = m.result.joules_per_token


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "nonsense"}, "--energy-source=nonsense"),
        ({"source": "replay:run.jsonl.gz"}, "replay it with pytest"),
        ({"scope": "board"}, "scope='board': must be one of gpu"),
        ({"min_rounds": 3, "max_rounds": 2}, "max_rounds not below min_rounds"),
        ({"max_seconds": float("nan")}, "a positive number"),
        ({"max_seconds": "60"}, "a positive number"),
        ({"min_rounds": "3"}, "rounds are at least one"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words), measure(**{"source": "simulated", **arguments}):  # type: ignore[arg-type]
        pass


def test_numbers_of_tokens_are_what_a_token_count_takes() -> None:
    with measure("simulated") as m:
        generate()
        m.tokens(prompt=10, generated=5, cached_prompt=3)
    assert m.result.rounds[0].cached_prompt_tokens == 3
    with (
        pytest.raises(UsageError, match=r"measure\(\): TokenCount\(prompt=-1\): must be"),
        measure("simulated") as m,
    ):
        m.tokens(prompt=-1, generated=5)


def test_a_block_that_fails_measures_nothing() -> None:
    with pytest.raises(OSError, match="server gone"), measure("simulated") as m:
        raise OSError("server gone")
    with pytest.raises(UsageError, match="nothing has been measured yet"):
        _ = m.result


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_quantity_keeps_its_error(copy: Callable[[Quantity], Quantity]) -> None:
    copied = copy(Quantity(Figure(2.5, 0.1)))
    assert (copied, copied.stderr) == (2.5, 0.1)


def test_a_quantity_is_its_number() -> None:
    quantity = Quantity(Figure(0.25, 0.001))
    assert quantity < 0.3
    assert (quantity.value, quantity.stderr, 2 * quantity) == (0.25, 0.001, 0.5)
    assert repr(quantity) == "0.25 ± 0.001"


def test_a_test_reads_what_it_measured(project: Project) -> None:
    project.tests(
        """
from pytest_tokenpower import Result, measure
from pytest_tokenpower.errors import UsageError

pytestmark = quick

def test_call(energy):
    with pytest.raises(AttributeError):
        energy.result = 1
    energy(generate, 0.12)
    result = energy.result
    assert isinstance(result, Result)
    assert result.valid and len(result.rounds) == 2
    assert result.joules_per_token == pytest.approx(300 * result.figures["seconds"] / 1000, rel=0.05)
    assert result.joules_per_token < 1
    assert energy.result is result

def test_blocks(energy):
    for number in range(1, 3):
        with energy.measure() as window:
            sleep(0.12)
            window.tokens(prompt=0, generated=10)
        assert len(energy.result.rounds) == number

def test_compare(energy):
    energy.compare(baseline=lambda: generate(0.12), candidate=lambda: generate(0.12, generated=1010))
    assert abs(energy.result.verdicts[0].change) < 0.2

def test_too_short(energy):
    with energy.measure() as window:
        window.tokens(prompt=0, generated=10)
    assert not energy.result.valid
    assert "shorter than" in energy.result.reason

def test_before(energy):
    energy.result

def test_inside(energy):
    with energy.measure() as window:
        energy.result

def test_script_in_a_test(energy):
    with measure("simulated"):
        pass
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=3, failed=4)
    said = " ".join(result.stdout.str().split())
    for line in (
        "INVALID: test_too_short",
        "test_before: energy.result: nothing has been measured yet",
        "test_inside: energy.result was read while a window is open: read it after the block",
        "measure(): the board is kept by test_energy.py::test_script_in_a_test until that ends",
    ):
        assert line in said
    assert [one.comparable for one in run.measurements[:2]] == [True, True]


def test_the_names_are_imported_when_they_are_used() -> None:
    assert pytest_tokenpower.measure is measure
    assert pytest_tokenpower.Result is Result
