"""One open window a board, and each folder's hook asked for its own tests."""

from __future__ import annotations

import json
import threading

import pytest

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.runner.open_windows import sole_window


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
