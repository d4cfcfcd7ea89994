"""The power_budget marker: what it takes, what it refuses before anything runs, and the absolute limits."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.support.projects import Project

RAN = "\n\ndef test_ran():\n    open('ran', 'w').close()\n"

VALID = (
    "joules_per_token, joules_per_prompt_token, joules_per_total_token, joules_per_response, joules, mean_watts, "
    "peak_watts, regression, min_rounds, max_rounds, max_seconds, key_ignore, per, "
    "prefix_cache"
)


def marked(arguments: Iterable[str]) -> str:
    """Return a test for each of the markers, called test_0 and so on."""
    return "".join(
        f"@pytest.mark.power_budget({each})\ndef test_{number}():\n    pass\n\n\n"
        for number, each in enumerate(arguments)
    )


def refused(project: Project, text: str) -> str:
    """Return the error that stops a run of these tests before any of them runs."""
    project.tests(text + RAN)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    assert not (project.path / "ran").exists()
    return " ".join(result.stdout.str().split())


def test_every_argument_is_taken(project: Project) -> None:
    arguments = [
        "joules_per_token=0.35",
        "joules_per_response=12",
        "joules=1e3",
        "mean_watts=650",
        "peak_watts=700.5",
        "regression='3%'",
        "regression='2.5 %'",
        "regression=0.03",
        "min_rounds=2",
        "max_rounds=30",
        "max_seconds=0.5",
        "joules_per_prompt_token=0.01, per='prompt_token'",
        "joules_per_total_token=0.01, per='total_token'",
        "per='token'",
        "prefix_cache=True",
        "per='response'",
        "key_ignore='axis.quantization'",
        "key_ignore=('dtype', 'engine_version')",
    ]
    project.tests(marked(arguments))
    project.run("--energy-disable").assert_outcomes(passed=len(arguments))


MALFORMED = {
    "joule_per_token=1": "power_budget has no argument 'joule_per_token'",
    "0.35": f"power_budget takes its arguments by name, not 0.35: {VALID}",
    "per='prompt token'": "power_budget(per='prompt token'): must be one of token, prompt_token, total_token, response",
    "prefix_cache='on'": "power_budget(prefix_cache='on'): must be True, where prompts from a prefix cache are meant",
    "per=None": "power_budget(per=None): must be one of token, prompt_token, total_token, response",
    "joules_per_token=0": "power_budget(joules_per_token=0): must be a positive number",
    "joules_per_token='0.35'": "power_budget(joules_per_token='0.35'): must be a positive number",
    "mean_watts=float('nan')": "power_budget(mean_watts=nan): must be a positive number",
    "peak_watts=float('inf')": "power_budget(peak_watts=inf): must be a positive number",
    "joules=True": "power_budget(joules=True): must be a positive number",
    "max_seconds=-1": "power_budget(max_seconds=-1): must be a positive number",
    "regression=3": "power_budget(regression=3): is 300%: write '3%' for 3 percent",
    "regression='three'": "power_budget(regression='three'): must be a share such as '3%' or 0.03",
    "regression='1.2.3%'": "power_budget(regression='1.2.3%'): must be a share such as '3%' or 0.03",
    "regression=-0.03": "power_budget(regression=-0.03): must be a share such as '3%' or 0.03",
    "min_rounds=0": "power_budget(min_rounds=0): must be an integer of at least 1",
    "min_rounds=2.0": "power_budget(min_rounds=2.0): must be an integer of at least 1",
    "max_rounds=True": "power_budget(max_rounds=True): must be an integer of at least 1",
    "max_rounds=2": "power_budget(max_rounds=2): must be at least min_rounds, 6",
    "key_ignore=3": "power_budget(key_ignore=3): must be a name of a key field, or a list of names",
    "key_ignore=[3]": "power_budget(key_ignore=[3]): must be a name of a key field, or a list of names",
    "key_ignore='scope'": "power_budget(key_ignore='scope'): 'scope' cannot be left out",
}


def test_malformed_arguments_stop_the_run_before_any_test_and_are_named_all_at_once(project: Project) -> None:
    error = refused(project, marked(MALFORMED))
    for number, complaint in enumerate(MALFORMED.values()):
        assert f"test_energy.py::test_{number}: {complaint}" in error


def test_an_unknown_argument_is_answered_with_the_valid_ones(project: Project) -> None:
    error = refused(project, "@pytest.mark.power_budget(watts=3)\ndef test_marked(energy):\n    pass\n")
    assert (
        f"test_energy.py::test_marked: power_budget has no argument 'watts'; the valid ones are {VALID}"
        in error
    )


@pytest.mark.parametrize(
    "text",
    [
        "pytestmark = pytest.mark.power_budget(watts=3)\n\ndef test_marked():\n    pass\n",
        "@pytest.mark.power_budget(watts=3)\nclass TestClass:\n    def test_marked(self):\n        pass\n",
        "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.power_budget(watts=3))])\n"
        "def test_marked(n):\n    pass\n",
        "import unittest\n\nclass TestCase(unittest.TestCase):\n"
        "    @pytest.mark.power_budget(watts=3)\n    def test_marked(self):\n        pass\n",
    ],
    ids=["module", "class", "parameter", "unittest"],
)
def test_a_malformed_marker_is_found_wherever_it_stands(project: Project, text: str) -> None:
    assert "power_budget has no argument 'watts'" in refused(project, text)


def test_a_marker_that_is_added_late_is_checked_before_its_test_runs(project: Project) -> None:
    project.file(
        "conftest.py",
        "import pytest\n\ndef pytest_collection_modifyitems(items):\n"
        "    for item in items:\n        item.add_marker(pytest.mark.power_budget(watts=3))\n",
    )
    project.tests("def test_late(energy):\n    open('ran', 'w').close()\n")
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_energy.py::test_late: power_budget has no argument 'watts'; *"])
    assert not (project.path / "ran").exists()


def test_markers_of_module_class_and_test_merge_and_the_nearest_wins(project: Project) -> None:
    project.tests(
        """
pytestmark = pytest.mark.power_budget(joules=1000, mean_watts=1000, max_rounds=8)

@pytest.mark.power_budget(mean_watts=900, peak_watts=900)
class TestClass:
    @pytest.mark.power_budget(peak_watts=800, min_rounds=2)
    @pytest.mark.power_budget(max_rounds=2)
    def test_merged(self, energy):
        energy(generate)
"""
    )
    _, run = project.measure()
    [measured] = run.measurements
    assert {verdict.against: verdict.threshold for verdict in measured.verdicts} == {
        "joules": 1000,
        "mean_watts": 900,
        "peak_watts": 800,
    }
    assert len(measured.rounds) == 2


def test_every_absolute_limit_is_held_against_its_figure(project: Project) -> None:
    # 300 W for 50 ms: 15 J, 1000 tokens and 10 responses.
    project.tests(
        """
def ten_responses():
    return generate(0.05, responses=10)


@quick
@pytest.mark.power_budget(joules_per_token=0.03, joules_per_response=3, joules=30, mean_watts=400, peak_watts=400)
def test_within(energy):
    energy(ten_responses)


@quick
@pytest.mark.parametrize("limit", ["joules_per_token", "joules_per_response", "joules", "mean_watts", "peak_watts"])
def test_over(energy, limit, request):
    energy(ten_responses)


def test_undecided(energy):
    energy(ten_responses)
"""
    )
    project.file(
        "conftest.py",
        """
import pytest

LIMITS = {
    "test_over[joules_per_token]": {"joules_per_token": 0.0075},
    "test_over[joules_per_response]": {"joules_per_response": 0.75},
    "test_over[joules]": {"joules": 7.5},
    "test_over[mean_watts]": {"mean_watts": 200},
    "test_over[peak_watts]": {"peak_watts": 200},
    "test_undecided": {"mean_watts": 300, "min_rounds": 2, "max_rounds": 2},
}

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.power_budget(**LIMITS.get(item.name, {})))
""",
    )
    result, run = project.measure()
    result.assert_outcomes(passed=2, failed=5)
    kinds = {
        measured.test.rpartition("::")[2]: {verdict.against: verdict.kind for verdict in measured.verdicts}
        for measured in run.measurements
    }
    assert set(kinds.pop("test_within").values()) == {"passed"}
    assert kinds.pop("test_undecided") == {"mean_watts": "inconclusive"}
    assert kinds == {
        f"test_over[{limit}]": {limit: "over budget"}
        for limit in ("joules_per_token", "joules_per_response", "joules", "mean_watts", "peak_watts")
    }
    result.stdout.fnmatch_lines(
        [
            "OVER BUDGET 1*.* mJ/token (limit *): test_over[[]joules_per_token[]]: joules_per_token exceeds "
            "its budget (95 % interval 1*.* to 1*.*).",
            "OVER BUDGET 1.* J/response (limit 0.75): test_over[[]joules_per_response[]]: *exceeds its budget (*).",
            "OVER BUDGET 1* J / execution of the workload (limit 7.5): test_over[[]joules[]]: joules exceeds *",
            "OVER BUDGET * W (limit 200): test_over[[]mean_watts[]]: mean_watts exceeds its budget (*).",
            "OVER BUDGET * W (limit 200): test_over[[]peak_watts[]]: peak_watts exceeds its budget.",
            "inconclusive * W (limit 300): test_undecided: mean_watts cannot be told from its budget (*).",
        ]
    )


def test_an_inconclusive_verdict_fails_where_the_ini_says_so(project: Project) -> None:
    project.ini("energy_inconclusive = fail")
    project.tests(
        "@quick\n@pytest.mark.power_budget(mean_watts=300)\ndef test_it(energy):\n    energy(generate)\n"
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INCONCLUSIVE * W (limit 300): test_it: mean_watts cannot be told from *"])


def test_a_budget_on_a_test_that_measures_nothing_fails_it(project: Project) -> None:
    project.tests(
        """
class TestClass:
    pytestmark = pytest.mark.power_budget(joules=3)

    def test_forgotten(self):
        pass

    def test_skipped(self):
        pytest.skip("not here")

    def test_broken(self):
        assert "this" == "that"
"""
    )
    result = project.run()
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*TestClass::test_forgotten has a power_budget and measures nothing: name the energy fixture *",
            "E*'that'",
        ],
        consecutive=False,
    )
    result.stdout.no_fnmatch_line("*test_broken has a power_budget*")


def test_two_limits_fail_with_both_reasons(project: Project) -> None:
    project.tests(
        "@quick\n@pytest.mark.power_budget(mean_watts=200, peak_watts=200)\n"
        "def test_it(energy):\n    energy(generate)\n"
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["OVER BUDGET * test_it: mean_watts*", "OVER BUDGET * test_it: peak_watts*"])


def test_pytest_lists_the_marker_and_its_arguments(project: Project) -> None:
    result = project.run("--markers")
    assert result.ret == 0
    marker = next(line for line in result.stdout.lines if line.startswith("@pytest.mark.power_budget("))
    assert all(f"{argument}=" in marker for argument in VALID.split(", "))


@pytest.mark.parametrize("isolated", [False, True])
def test_latencies_are_ceilings_in_milliseconds(project: Project, isolated: bool) -> None:
    """An engine in another process lives on the machine's time, and beside it the board's passes."""
    options = "isolated=True" if isolated else "isolated=False, clock=VIRTUAL_TIME.clock"
    project.tests(
        """
from pytest_tokenpower import EngineSpec, FixedShape

@pytest.mark.power_budget(min_rounds=2, max_rounds=2, ttft_ms=1, tpot_ms=1000)
def test_late(energy):
    batch = FixedShape(batch=8, prompt_tokens=2048, new_tokens=16).to_batch()
    with EngineSpec("simulated", "llama-3.1-8b", OPTIONS).start() as engine:
        def work():
            sleep(0.5)
            return engine.generate(batch)
        energy(work)

@quick
@pytest.mark.power_budget(tpot_ms=5)
def test_unknown(energy):
    energy(generate)
""".replace("OPTIONS", options)
    )
    result, run = project.measure()
    result.assert_outcomes(failed=2)
    late, unknown = run.measurements
    assert {one.against: one.kind for one in late.verdicts} == {
        "ttft_p90_seconds": "over budget",
        "tpot_p90_seconds": "passed",
    }
    assert [one.kind for one in unknown.verdicts] == ["invalid"]
    assert unknown.verdicts[0].reason.startswith(
        "power_budget(tpot_ms=...) limits a figure that this test never has: its results do not say when"
    )
    result.stdout.fnmatch_lines(
        [
            "OVER BUDGET * ms to the first token, 90 of 100 requests (limit 1): test_late: ttft_p90_seconds exceeds *"
        ]
    )
