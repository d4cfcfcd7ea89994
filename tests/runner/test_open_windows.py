"""One open window a board, and each folder's hook asked for its own tests."""

from __future__ import annotations

import json
import threading

import pytest

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.runner.open_windows import sole_window
from tests.support.projects import Project


def test_a_second_window_of_a_board_is_refused() -> None:
    with (
        pytest.raises(UsageError, match=r"one energy\.measure"),
        sole_window("a", frozenset({"0", "1"})),
        sole_window("b", frozenset({"1"})),
    ):
        pass
    with sole_window("a", frozenset({"1"})), sole_window("b", frozenset({"2"})):
        pass


def test_a_refusal_swallowed_in_a_thread_refuses_the_open_window() -> None:
    refused = []

    def second() -> None:
        try:
            with sole_window("b", frozenset({"0"})):
                pass
        except UsageError as error:
            refused.append(error)

    def first() -> None:
        with sole_window("a", frozenset({"0"})):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    with pytest.raises(UsageError, match="b: a measurement began"):
        first()
    assert len(refused) == 1


def test_nested_blocks_fail_and_blocks_in_turn_do_not(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import time

        def block(energy):
            with energy.measure() as window:
                time.sleep(0.05)
                window.tokens(prompt=0, generated=10)

        def test_in_turn(energy):
            for _ in range(3):
                block(energy)

        def test_nested(energy):
            with energy.measure() as window:
                block(energy)
                window.tokens(prompt=0, generated=1)
        """
    )
    result = pytester.runpytest_subprocess("--energy-source=simulated", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*put one energy.measure() block around all of it*"])


def test_each_folders_hook_counts_its_own_tests(pytester: pytest.Pytester) -> None:
    for folder, factor in (("alpha", 1), ("beta", 4)):
        (pytester.path / folder).mkdir()
        (pytester.path / folder / "conftest.py").write_text(
            "from pytest_tokenpower import TokenCount\n"
            "def pytest_tokenpower_count_tokens(result):\n"
            f"    return TokenCount(0, {factor} * len(result['pieces']))\n"
        )
        (pytester.path / folder / f"test_{folder}.py").write_text(
            "import time, pytest\n"
            "@pytest.mark.power_budget(min_rounds=2, max_rounds=2)\n"
            "def test_chat(energy):\n"
            "    energy(lambda: (time.sleep(0.1), {'pieces': ['x'] * 5})[1])\n"
        )
    pytester.runpytest_subprocess(
        "--energy-source=simulated", "--import-mode=importlib", "--energy-json=run.json"
    ).assert_outcomes(passed=2)
    measured = json.loads((pytester.path / "run.json").read_text())["measurements"]
    generated = [
        one["rounds"][0]["generated_tokens"] / one["rounds"][0].get("repeats", 1) for one in measured
    ]
    assert generated == [5, 20]


def test_every_way_to_measure_holds_the_boards_and_no_refusal_is_forgotten(project: Project) -> None:
    # Windows of threads and tasks lie over each other where each of them waits by itself.
    project.on_machine_time()
    project.tests(
        """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor

pytestmark = quick

def inner(energy):
    with energy.measure() as window:
        window.tokens(prompt=0, generated=1)

def swallowed(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception:
        pass

def block(energy):
    with energy.measure() as window:
        time.sleep(0.12)
        window.tokens(prompt=0, generated=10)

def test_block_in_call(energy):
    def workload():
        swallowed(inner, energy)
        return generate(0.12)
    energy(workload)

def test_call_in_block(energy):
    with energy.measure() as window:
        swallowed(energy, generate)
        time.sleep(0.12)
        window.tokens(prompt=0, generated=10)

def test_call_in_call(energy):
    energy(lambda: (swallowed(energy, generate), generate(0.12))[1])

def test_block_in_compare(energy):
    def variant():
        swallowed(inner, energy)
        return generate(0.12)
    energy.compare(baseline=variant, candidate=lambda: generate(0.12))

def test_compare_in_a_thread(energy):
    with energy.measure() as window:
        thread = threading.Thread(
            target=swallowed, args=(energy.compare,), kwargs={"baseline": generate, "candidate": generate}
        )
        thread.start()
        thread.join()
        time.sleep(0.12)
        window.tokens(prompt=0, generated=10)

def test_blocks_of_threads(energy):
    with ThreadPoolExecutor(3) as pool:
        for _ in [pool.submit(swallowed, block, energy) for _ in range(3)]:
            pass

def test_blocks_of_tasks(energy):
    async def client():
        try:
            with energy.measure() as window:
                await asyncio.sleep(0.12)
                window.tokens(prompt=0, generated=10)
        except Exception:
            pass
    async def clients():
        await asyncio.gather(client(), client())
    asyncio.run(clients())

def test_a_block_whose_tokens_nobody_knows(energy):
    block(energy)
    try:
        with energy.measure() as window:
            window.count("words")
    except Exception:
        pass

def test_a_count_that_nobody_knows(energy):
    with energy.measure() as window:
        time.sleep(0.12)
        window.tokens(prompt=0, generated=10)
        swallowed(window.count, "words")

def test_tokens_that_come_too_late(energy):
    with energy.measure() as window:
        time.sleep(0.12)
        window.tokens(prompt=0, generated=10)
    swallowed(window.tokens, prompt=0, generated=10)

@pytest.fixture
def left_open(energy):
    blocks = [energy.measure()]
    yield blocks
    blocks[0].__exit__(None, None, None)

def test_a_block_that_is_open_at_the_end(energy, left_open):
    block(energy)
    left_open[0].__enter__()

def test_a_block_that_is_left(energy):
    block(energy)
    energy.measure().__enter__()
"""
    )
    result, run = project.measure("--energy-save=x")
    result.assert_outcomes(failed=12, errors=1)
    assert [one.test for one in run.measurements if one.comparable] == []
    words = result.stdout.str()
    for line in (
        "::test_block_in_call: energy() and energy.measure() in one test",
        "::test_call_in_call: a measurement began while another",
        "::test_block_in_compare: a measurement began while another",
        "::test_compare_in_a_thread: ",
        "::test_a_count_that_nobody_knows: the tokens of a str cannot be counted",
        "::test_tokens_that_come_too_late: tokens were counted when their energy.measure() block had ended",
        "::test_a_block_that_is_open_at_the_end: a window is still open at the test's end",
        "::test_a_block_that_is_left: an energy.measure() block was begun and never ended",
    ):
        assert line in words, line


def test_a_window_counts_as_the_hook_of_its_folder_does(project: Project) -> None:
    project.file(
        "conftest.py",
        "from pytest_tokenpower import TokenCount\n"
        "def pytest_tokenpower_count_tokens(result):\n"
        "    return TokenCount(3, 5) if result == 'words' else None\n",
    )
    project.tests(
        "def test_it(energy):\n    with energy.measure() as window:\n        sleep(0.12)\n"
        "        window.count('words')\n"
    )
    _, run = project.measure()
    assert run.measurements[0].key["generated_tokens"] == 5


def test_results_of_one_window_have_phases_where_these_add_up(project: Project) -> None:
    project.tests(
        """
from types import SimpleNamespace

def output(begin, seconds):
    marks = SimpleNamespace(
        scheduled_ts=begin, first_token_ts=begin + seconds / 4, last_token_ts=begin + seconds, num_generation_tokens=10
    )
    one = SimpleNamespace(token_ids=[7] * 10)
    return SimpleNamespace(metrics=marks, outputs=[one], prompt_token_ids=[5] * 50)

def window(energy, *begins, silent=False):
    with energy.measure() as window:
        now = VIRTUAL_TIME.now_ns() / 1e9
        sleep(4)
        for begin in begins:
            window.count(output(now + begin, 1.9))
        if silent:
            window.tokens(prompt=50, generated=10)

def test_in_turn(energy):
    window(energy, 0, 2)

def test_at_a_time(energy):
    window(energy, 0, 0.1)

def test_one_without(energy):
    window(energy, 0, silent=True)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=3)
    phases = {each.test.partition("::")[2]: set(each.rounds[0].phases) for each in run.measurements}
    assert phases["test_in_turn"] >= {"prefill", "decode"}
    assert phases["test_at_a_time"] >= {"prefill", "decode"}
    assert not phases["test_one_without"]


def test_a_block_that_a_failed_test_leaves_open_is_in_no_other_tests_way(project: Project) -> None:
    project.tests(
        """
kept = []

def rounds(energy):
    with energy.measure() as window:
        sleep(0.5)
        window.tokens(prompt=1, generated=10)
        yield

@pytest.mark.parametrize("fails", [True, False])
def test_left(energy, fails):
    kept.append(rounds(energy))
    next(kept[-1])
    assert not fails

@quick
def test_next(energy):
    energy(generate)

def test_end():
    for each in kept:
        each.close()
"""
    )
    result, run = project.measure("--energy-save=x")
    result.assert_outcomes(passed=2, failed=2)
    assert [one.test for one in run.measurements if one.comparable] == ["test_energy.py::test_next"]
    result.stdout.fnmatch_lines(["*test_left?False?: a window is still open at the test's end: *"])
