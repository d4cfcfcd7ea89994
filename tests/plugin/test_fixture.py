"""The energy fixture: what it counts, returns and refuses, and how a test that uses it gets on with pytest."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pytest_tokenpower.core.records import MeasurementRecord, RunRecord
from tests.support.projects import Project


def by_name(run: RunRecord) -> dict[str, MeasurementRecord]:
    return {measured.test.rpartition("::")[2]: measured for measured in run.measurements}


def text(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_tokens_are_counted_from_what_workloads_return(project: Project) -> None:
    project.tests(
        """
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

pytestmark = quick


def completion(token_ids):
    return SimpleNamespace(token_ids=token_ids)


def vllm(prompts):
    # As vLLM's RequestOutput: token ids of the prompt, and of each of n completions.
    return [
        SimpleNamespace(prompt_token_ids=list(range(3)), outputs=[completion((1, 2, 3, 4)), completion((1, 2))])
        for _ in range(prompts)
    ]


def openai(as_dict):
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    if as_dict:
        return {"choices": [{}, {}], "usage": usage}
    return SimpleNamespace(choices=[None], usage=SimpleNamespace(**usage))


@dataclass
class Model:
    eos: int | None = 0

    @property
    def generation_config(self):
        return SimpleNamespace(eos_token_id=self.eos, pad_token_id=9)

    def generate(self, input_ids=None, attention_mask=None, eos_token_id=None):
        sleep(0.02)
        # The second row ends with its second token; what follows is padding.
        return np.concatenate([input_ids, [[5, 6, 7], [5, 0, 9]]], axis=1)


class Output(dict):
    def __init__(self, sequences):
        super().__init__(sequences=sequences)
        self.sequences = sequences


PROMPTS = np.array([[1, 2, 3, 4], [9, 9, 1, 2]])
MASK = np.array([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(lambda: vllm(1)[0], id="vllm-one"),
        pytest.param(lambda: vllm(2), id="vllm-list"),
        pytest.param(lambda: openai(True), id="openai-dict"),
        pytest.param(lambda: openai(False), id="openai-object"),
        pytest.param(lambda: [openai(True), openai(False)], id="openai-list"),
        pytest.param(lambda: TokenCount(prompt=2, generated=3, responses=4), id="token-count"),
        pytest.param(lambda: (TokenCount(2, 3), TokenCount(2, 3)), id="token-counts"),
        pytest.param(lambda: SimpleNamespace(tokens=TokenCount(5, 6, 2)), id="generation"),
        pytest.param(lambda: "hooked", id="hook"),
    ],
)
def test_of(energy, workload):
    energy(lambda: (sleep(0.02), workload())[1])


def test_transformers(energy):
    energy(Model().generate, input_ids=PROMPTS, attention_mask=MASK)


def test_transformers_positional(energy):
    energy(Model().generate, PROMPTS)


def test_transformers_without_end(energy):
    energy(Model(eos=None).generate, PROMPTS, MASK)


def test_transformers_output(energy):
    model = Model()
    energy(lambda input_ids: Output(model.generate(input_ids)), PROMPTS)


def test_block(energy):
    with energy.measure() as window:
        sleep(0.12)
        window.count(vllm(1))
        window.tokens(prompt=1, generated=1, responses=1)
"""
    )
    project.file(
        "conftest.py",
        """
from pytest_tokenpower import TokenCount

def pytest_tokenpower_count_tokens(result, args, kwargs):
    return TokenCount(prompt=20, generated=30) if isinstance(result, str) else None
""",
    )
    result, run = project.measure()
    result.assert_outcomes(passed=14)
    counted = {}
    for name, measured in by_name(run).items():
        fields = ("prompt_tokens", "generated_tokens", "responses")
        counted[name] = tuple(measured.key[field] for field in fields)
        for one in measured.rounds:
            assert (one.prompt_tokens, one.generated_tokens, one.responses) == tuple(
                one.repeats * int(str(each)) for each in counted[name]
            )
    assert counted == {
        "test_of[vllm-one]": (3, 6, 2),
        "test_of[vllm-list]": (6, 12, 4),
        "test_of[openai-dict]": (11, 7, 2),
        "test_of[openai-object]": (11, 7, 1),
        "test_of[openai-list]": (22, 14, 3),
        "test_of[token-count]": (2, 3, 4),
        "test_of[token-counts]": (4, 6, 2),
        "test_of[generation]": (5, 6, 2),
        "test_of[hook]": (20, 30, 1),
        "test_transformers": (6, 5, 2),
        "test_transformers_positional": (6, 5, 2),
        "test_transformers_without_end": (6, 6, 2),
        "test_transformers_output": (6, 5, 2),
        "test_block": (4, 7, 3),
    }


def test_what_cannot_be_counted_fails_with_what_to_return(project: Project) -> None:
    project.tests(
        """
import numpy as np

class Reply:
    usage = None

@pytest.mark.parametrize("result", [None, "some words", b"bytes", 1000, [], ["words"], [TokenCount(1, 1), 2],
                                    {"usage": {"prompt_tokens": 1}}, Reply()])
def test_uncountable(energy, result):
    energy(lambda: result)

def test_tensor_alone(energy):
    energy(lambda: np.ones((2, 3), dtype=int))

@pytest.mark.parametrize("result", [TokenCount(0, 0, 0), []])
def test_nothing_done(energy, result):
    energy(lambda: result)

def test_block_without_tokens(energy):
    with energy.measure():
        pass

def test_block_that_does_nothing(energy):
    with energy.measure() as window:
        window.tokens(prompt=0, generated=0, responses=0)

def test_negative(energy):
    energy(lambda: TokenCount(1, -1))
"""
    )
    result, run = project.measure()
    result.assert_outcomes(failed=15)
    assert not any(measured.comparable for measured in run.measurements)
    for line in (
        "test_energy.py::test_uncountable[None]: the tokens of None cannot be counted: return vLLM RequestOutputs, "
        "transformers' generate() output, an OpenAI completion (with .usage), or "
        "pytest_tokenpower.TokenCount(prompt=..., generated=...)",
        "the tokens of a str cannot be counted",
        "item [1] of a list of TokenCount: the tokens of an int cannot be counted",
        "the tokens of a Reply cannot be counted",
        "energy(model.generate, **inputs)",
        "test_energy.py::test_nothing_done[result0]: a TokenCount says that nothing was read and nothing generated",
        "test_energy.py::test_block_without_tokens: nothing says what was read and generated in the energy.measure() "
        "block: call window.count(result) or window.tokens(prompt=..., generated=...)",
        "test_energy.py::test_block_that_does_nothing: nothing says what was read and generated",
        "TokenCount(generated=-1): must be an integer of at least 0",
    ):
        assert line in text(result)
    # A user's mistake has no traceback into the plugin.
    result.stdout.no_fnmatch_line("*pytest_tokenpower/fixture.py*")
    result.stdout.no_fnmatch_line("During handling of*")


def test_the_last_result_comes_back_and_arguments_go_through(project: Project) -> None:
    project.tests(
        """
calls = []

@quick
def test_it(energy):
    def workload(a, /, b, *more, option, **rest):
        sleep(0.13)
        assert (a, b, more, option, rest) == (1, 2, (3,), 4, {"fn": 5, "self": 6})
        calls.append(TokenCount(0, 1000))
        return calls[-1]

    assert energy(workload, 1, 2, 3, option=4, fn=5, self=6) is calls[-1]
    # One warm-up, then two rounds of two executions: 130 ms are too short for a 20 ms ring.
    assert len(calls) == 5
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    assert [one.repeats for one in run.measurements[0].rounds] == [2, 2]


def test_a_short_workload_is_repeated_until_the_meter_can_resolve_it(project: Project) -> None:
    project.tests(
        "@quick\n@pytest.mark.parametrize('seconds', [0.01, 0.3])\n"
        "def test_it(energy, seconds):\n    energy(generate, seconds)\n"
    )
    result, run = project.measure()
    result.assert_outcomes(passed=2)
    short, long = by_name(run).values()
    assert all(one.repeats == 1 for one in long.rounds)
    # A sleep lasts as long as it says, or longer on a busy machine: then fewer of them fill a round.
    assert all(1 < one.repeats <= 25 for one in short.rounds)
    for measured, seconds in ((short, 0.01), (long, 0.3)):
        assert all(
            one.seconds >= seconds * one.repeats and one.generated_tokens == 1000 * one.repeats
            for one in measured.rounds
        )
        # Figures are of one execution and of the token, whatever the repeats.
        assert measured.figures["joules"].value == pytest.approx(
            300 * measured.figures["seconds"].value, 0.02
        )
        assert measured.figures["joules_per_token"].value == pytest.approx(
            measured.figures["joules"].value / 1000, 0.02
        )


def test_rounds_go_on_until_they_are_precise_and_stop_at_the_most(project: Project) -> None:
    project.tests(
        """
import itertools

@pytest.mark.power_budget(min_rounds=2, max_rounds=5)
def test_scattered(energy):
    seconds = itertools.cycle([0.12, 0.24])
    energy(lambda: generate(next(seconds)))
"""
    )
    _, run = project.measure()
    assert len(run.measurements[0].rounds) == 5


def test_token_counts_that_vary_say_so_in_the_key(project: Project) -> None:
    project.tests(
        """
import itertools

@quick
@pytest.mark.parametrize("counts", [(1000, 1000), (1000, 1200), (1000, 1001)])
def test_it(energy, counts):
    generated = itertools.cycle(counts)
    energy(lambda: generate(0.06, generated=next(generated)))
"""
    )
    _, run = project.measure()
    same, varying, hardly = run.measurements
    assert same.key["generated_tokens"] == 1000
    for measured in (varying, hardly):
        assert measured.key["generated_tokens"] == "vary"
        assert measured.key["prompt_tokens"] == same.key["prompt_tokens"]
        assert measured.facts["token_counts"] == "differ between executions"
        assert measured.comparable


def test_an_error_of_the_workload_is_the_tests_own_and_leaves_nothing_comparable(project: Project) -> None:
    project.tests(
        """
def broken():
    raise ValueError("out of memory")

@pytest.mark.power_budget(joules=0.001)
def test_workload(energy):
    energy(broken)

@pytest.mark.power_budget(joules=0.001)
def test_block(energy):
    with energy.measure() as window:
        raise ValueError("out of memory")

@quick
@pytest.mark.power_budget(joules=0.001)
def test_afterwards(energy):
    energy(generate)
    assert "the answer" == "wrong"
"""
    )
    result, run = project.measure("--energy-save=first")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        ["E*ValueError: out of memory", "E*AssertionError: assert 'the answer' == 'wrong'"]
    )
    result.stdout.no_fnmatch_line("*OVER BUDGET*")
    result.stdout.fnmatch_lines(["test_workload * failed", "test_block * failed", "test_afterwards * failed"])
    for measured in run.measurements:
        assert not measured.comparable
        assert measured.reasons == ("the test failed by itself",)
        assert measured.verdicts == ()
        assert measured.figures == {}
    assert [len(measured.rounds) for measured in run.measurements] == [0, 0, 2]

    project.tests("@quick\ndef test_workload(energy):\n    energy(generate)\n")
    result = project.run("--energy-baseline=first")
    assert result.ret == 0
    assert (
        "no baseline: test_workload: nothing to compare with on first: 1 measurement of it on first, none to be "
        "compared with: the test failed by itself or its measurement was invalid"
    ) in text(result)


WAYS = """
import asyncio

from pytest_tokenpower import FixedShape
from pytest_tokenpower.engines import EngineIdentity, Generation

calls = []

def broken(error):
    def late():
        calls.append(0)
        if len(calls) > AFTER:
            raise error("out of memory")
        return generate(0.5)
    return late

def on_a_loop(error):
    work = broken(error)
    async def late():
        return work()
    return late

@pytest.fixture(autouse=True)
def anew():
    calls.clear()

@pytest.mark.parametrize("error", [ValueError, StopIteration])
class TestBroken:
    def test_call(self, energy, error):
        energy(broken(error))

    def test_compare(self, energy, error):
        energy.compare(baseline=generate, candidate=broken(error))

    def test_engine(self, energy, error):
        work = broken(error)

        class Engine:
            identity = EngineIdentity("mine", "1", "small")
            device_ids = None

            def generate(self, batch):
                return Generation((), batch.tokens) if work() else None

            def close(self):
                pass

        energy.run(Engine(), FixedShape(batch=1, prompt_tokens=2, new_tokens=3))

    @pytest.mark.energy_soak(hours=0.1)
    def test_soak(self, energy, error):
        energy(broken(error))

@pytest.mark.parametrize("error", [ValueError, StopAsyncIteration])
class TestBrokenOnALoop:
    def test_call(self, energy, error):
        energy(on_a_loop(error))

    def test_run(self, energy, error):
        asyncio.run(energy.async_run(on_a_loop(error)))

    def test_compare(self, energy, error):
        asyncio.run(energy.async_compare(baseline=generate, candidate=on_a_loop(error)))

    def test_compare_callables(self, energy, error):
        asyncio.run(energy.async_compare(baseline=generate, candidate=broken(error)))
"""


@pytest.mark.parametrize("disabled", [False, True])
def test_a_traceback_has_none_of_our_frames(project: Project, disabled: bool) -> None:
    project.tests(WAYS.replace("AFTER", "0" if disabled else "2"))
    result = project.run("--tb=short", *(["--energy-disable"] if disabled else []))
    result.assert_outcomes(failed=16)
    for error, times in (("ValueError", 8), ("StopIteration", 4), ("StopAsyncIteration", 4)):
        assert result.outlines.count(f"E   {error}: out of memory") == times
    result.stdout.no_fnmatch_line("*RuntimeError*")
    ours = [line for line in result.outlines if "pytest_tokenpower" in line and ".py:" in line]
    assert ours == []


def test_misuse_of_the_fixture_is_explained(project: Project) -> None:
    project.tests(
        """
pytestmark = quick

def test_twice(energy):
    energy(generate)
    energy(generate)

def test_both(energy):
    energy(generate)
    with energy.measure():
        pass

def test_both_the_other_way(energy):
    with energy.measure() as window:
        window.tokens(prompt=0, generated=1)
    energy(generate)

def test_unused(energy):
    pass
"""
    )
    result = project.run()
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "test_energy.py::test_twice: energy() was called twice in one test; *",
            "test_energy.py::test_both: energy() and energy.measure() in one test: use one of them",
            "test_energy.py::test_both_the_other_way: energy() and energy.measure() in one test: use one of them",
            "test_energy.py::test_unused asks for the energy fixture and measures nothing: call energy(fn, ...), "
            "await energy.async_run(fn, ...) or enter energy.measure()",
        ]
    )


def test_blocks_are_rounds(project: Project) -> None:
    project.tests(
        """
def test_once(energy):
    with energy.measure() as window:
        sleep(0.15)
        window.tokens(prompt=5, generated=500)

def test_three_times(energy):
    for _ in range(3):
        with energy.measure() as window:
            sleep(0.12)
            window.tokens(prompt=5, generated=500)
        sleep(0.05)

def test_too_short(energy):
    with energy.measure() as window:
        window.tokens(prompt=5, generated=500)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=2, failed=1)
    once, three, _ = run.measurements
    assert [len(measured.rounds) for measured in (once, three)] == [1, 3]
    assert once.figures["joules"].value == pytest.approx(300 * once.rounds[0].seconds, 0.02)
    # What lies between the blocks is nobody's.
    assert three.figures["joules"].value == pytest.approx(300 * 0.12, 0.1)
    assert "INVALID: test_too_short: the measurement is not to be trusted: " in text(result)
    assert "ms is shorter than the power ring can tell apart (20 ms): make a round longer than 0.2 s" in text(
        result
    )


def test_a_block_keeps_no_result_alive(project: Project) -> None:
    """In a process of its own: pytester remembers what hooks are called with."""
    project.tests(
        """
import gc, weakref

class Output:
    usage = {"prompt_tokens": 3, "completion_tokens": 100}

@pytest.mark.parametrize("shape", [lambda one: one, lambda one: [one], lambda one: {"answers": (one,)}])
def test_block(energy, shape):
    alive = weakref.WeakSet()
    with energy.measure() as window:
        for _ in range(5):
            generate(0.5)
            output = Output()
            alive.add(output)
            window.count(shape(output))
            del output
            gc.collect()
            assert not alive
    assert energy.result.figures["joules_per_token"].value == pytest.approx(300 * 2.5 / 500, rel=0.1)
"""
    )
    project.pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_list_that_is_counted_twice_in_a_block_is_refused(project: Project) -> None:
    project.tests(
        """
class Output:
    usage = {"prompt_tokens": 3, "completion_tokens": 100}

def test_block(energy):
    with energy.measure() as window:
        generate(0.5)
        outputs = [Output(), Output()]
        window.count(outputs)
        window.count(outputs)
"""
    )
    result, _ = project.measure()
    result.assert_outcomes(failed=1)
    assert "was counted twice: count each result once" in text(result)


def test_disabled_a_workload_runs_once_and_nothing_is_measured_or_stored(project: Project) -> None:
    project.tests(
        """
calls = []

def test_call(energy):
    assert energy(lambda x: calls.append(x) or x, 5) == 5
    assert calls == [5]

def test_block(energy):
    with energy.measure() as window:
        window.tokens(prompt=1, generated=1)
        window.count(TokenCount(1, 1))
"""
    )
    result = project.run(
        "--energy-disable",
        "--energy-save=x",
        "--energy-storage=store",
        "--energy-json=run.json",
        "--energy-baseline=no-such-thing",
        "--energy-source=nvml",
    )
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*J/token*")
    assert not (project.path / "store").exists()
    assert not (project.path / "run.json").exists()


def test_without_the_plugin_other_tests_run_on(project: Project) -> None:
    project.file("pytest.ini", "[pytest]\n")
    project.tests("def test_it(energy):\n    energy(generate)\n\ndef test_other():\n    pass\n")
    result = project.run("-pno:tokenpower", "-pno:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E*fixture 'energy' not found"])


def test_collecting_touches_nothing(project: Project) -> None:
    project.tests("def test_it(energy):\n    energy(generate)\n")
    result = project.run(
        "--collect-only",
        "--energy-autosave",
        "--energy-storage=store",
        "--energy-json=run.json",
        "--energy-baseline=no-such-thing",
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 test collected*"])
    assert not (project.path / "store").exists()
    assert not (project.path / "run.json").exists()


@pytest.mark.parametrize("option", ["--help", "--markers", "--fixtures", "--version"])
def test_asking_pytest_about_itself_needs_no_baseline(project: Project, option: str) -> None:
    project.ini("energy_baseline = no-such-thing")
    assert project.run(option).ret == 0


def test_a_regression_that_is_expected_to_fail_does(project: Project) -> None:
    project.tests(
        """
pytestmark = quick

@pytest.mark.power_budget(mean_watts=200)
@pytest.mark.xfail(strict=True, reason="known to be expensive")
def test_over(energy):
    energy(generate)

@pytest.mark.power_budget(mean_watts=400)
@pytest.mark.xfail(strict=True, reason="thought to be expensive")
def test_within(energy):
    energy(generate)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*thought to be expensive"])
    over, within = run.measurements
    assert (over.verdicts[0].kind, over.comparable) == ("over budget", True)
    # That it passed is a failure of the test, whatever its energy.
    assert (within.verdicts, within.comparable) == ((), False)


def test_skipping_inside_a_test_is_no_failure(project: Project) -> None:
    project.tests(
        "@quick\n@pytest.mark.power_budget(joules=0.001)\ndef test_it(energy):\n    energy(generate)\n"
        "    pytest.skip('not here')\n"
    )
    result, run = project.measure()
    result.assert_outcomes(skipped=1)
    assert run.measurements == ()


def test_a_test_that_is_rerun_is_judged_over_all_its_tries(project: Project) -> None:
    project.tests(
        """
attempts = []

@quick
@pytest.mark.flaky(reruns=2)
@pytest.mark.power_budget(joules=9)
def test_it(energy):
    attempts.append(1)
    energy(generate, 0.06 if len(attempts) == 1 else 0.01)
"""
    )
    result, run = project.measure("--junit-xml=report.xml")
    assert result.ret == 0
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    assert [measured.verdicts[0].kind for measured in run.measurements] == ["inconclusive"]
    attempts = [
        [(each.get("name"), each.get("value")) for each in case.iter("property")]
        for case in ElementTree.parse(project.path / "report.xml").iter("testcase")
    ]
    assert [dict(attempt)["energy.verdict"] for attempt in attempts] == ["over budget", "inconclusive"]
    assert all(len(attempt) == len(dict(attempt)) for attempt in attempts)


def test_an_attempt_that_measures_nothing_has_nothing_of_the_one_before(project: Project) -> None:
    project.tests(
        """
attempts = []

@quick
@pytest.mark.flaky(reruns=1)
@pytest.mark.power_budget(joules=1)
def test_it(energy):
    attempts.append(1)
    if len(attempts) == 1:
        energy(generate)
"""
    )
    result, run = project.measure()
    assert result.parseoutcomes() == {"failed": 1, "rerun": 1}
    result.stdout.fnmatch_lines(["*asks for the energy fixture and measures nothing*"])
    assert len(run.measurements) == 1


def test_a_malformed_token_hook_is_named(project: Project) -> None:
    project.file("conftest.py", "def pytest_tokenpower_count_tokens(result, args, kwargs):\n    return 12\n")
    project.tests("def test_it(energy):\n    energy(lambda: 'text')\n")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*pytest_tokenpower_count_tokens returned 12: *TokenCount*"])


def test_a_skip_for_want_of_a_meter_says_its_reason_without_rs(project: Project) -> None:
    project.tests("def test_a(energy): energy(generate)\ndef test_b(energy): energy(generate)")
    result = project.run("--energy-source=redfish:http://127.0.0.1:9")
    result.assert_outcomes(skipped=2)
    [at] = [
        at
        for at, line in enumerate(result.outlines)
        if line.startswith("energy: 2 tests skipped, not measured: ")
    ]
    reason = result.outlines[at:-1]
    assert "127.0.0.1:9" in "".join(reason)
    assert all(len(line) <= 120 for line in reason)
    assert all(line.startswith("  ") for line in reason[1:])


def test_a_column_that_there_is_not_is_a_usage_error(project: Project) -> None:
    project.tests("def test_a(energy): energy(generate)")
    result = project.run("--energy-columns=watt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--energy-columns: no column watt: valid are *"])
