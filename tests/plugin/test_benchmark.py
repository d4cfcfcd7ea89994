"""Side by side with pytest-benchmark: seconds there, joules here, of one test."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.support.projects import Project

BENCHMARK = ("-p", "pytest_benchmark.plugin")

TESTS = """


@quick
def test_both(energy, benchmark):
    energy(generate, 0.12)
    assert benchmark(lambda x: x, 3) == 3

@quick
def test_in_one(energy, benchmark):
    assert energy(benchmark, generate, 0.05, generated=50).generated == 50
"""


@pytest.fixture(autouse=True)
def benchmarked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark times on the machine's clock, and does nothing in a worker of xdist."""
    project.on_machine_time()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


PLAIN = """
def test_neither():
    pass
"""

installed = pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is None, reason="needs pytest-benchmark"
)


@installed
def test_a_test_with_both_fixtures_has_its_energy_in_their_json(project: Project) -> None:
    project.tests(TESTS)
    result, run = project.measure(
        *BENCHMARK, "--benchmark-json=b.json", "--benchmark-max-time=0.1", "--benchmark-min-rounds=2"
    )
    result.assert_outcomes(passed=2)
    told = json.loads((project.path / "b.json").read_text())
    assert told["machine_info"]["energy"] == [
        {"name": "Simulated H100 80GB", "scope": "gpu", "meter": "nvml", "provenance": "simulated"}
    ]
    for benchmark, measured in zip(told["benchmarks"], run.measurements, strict=True):
        figure = measured.figures["joules_per_token"]
        info = benchmark["extra_info"]
        assert info["energy.joules_per_token"] == figure.value
        assert info["energy.joules_per_token_stderr"] == figure.stderr
        assert info["energy.provenance"] == "simulated"
        assert benchmark["stats"]["rounds"] >= 2
    # A sleep lasts as long as it says, or longer on a busy machine.
    assert 0.05 <= told["benchmarks"][1]["stats"]["mean"] < 5
    assert run.measurements[1].key["generated_tokens"] == 50


@installed
@pytest.mark.parametrize(
    ("options", "outcomes"),
    [
        (["--benchmark-disable"], {"passed": 3}),
        (["--benchmark-skip"], {"passed": 1, "skipped": 2}),
        (["--benchmark-only", "--benchmark-max-time=0.1"], {"passed": 2, "skipped": 1}),
        (["--energy-disable", "--benchmark-max-time=0.1"], {"passed": 3}),
        (["--energy-disable", "--benchmark-disable"], {"passed": 3}),
        (["-n1", "-W", "ignore"], {"passed": 3}),
        (["--energy-only", "--benchmark-disable"], {"passed": 2, "skipped": 1}),
        (["--energy-skip", "--benchmark-disable"], {"passed": 1, "skipped": 2}),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_it_may_be_switched_off(project: Project, options: list[str], outcomes: dict[str, int]) -> None:
    project.tests(TESTS + PLAIN)
    project.run(*BENCHMARK, *options).assert_outcomes(**outcomes)


@installed
def test_misuse_is_explained(project: Project) -> None:
    project.tests(
        """
def test_the_wrong_way_round(energy, benchmark):
    benchmark(energy, generate)

def test_pedantic(energy, benchmark):
    energy(benchmark.pedantic, generate)

def test_nothing_to_do(energy, benchmark):
    energy(benchmark)
"""
    )
    result = project.run(*BENCHMARK, "-W", "ignore")
    result.assert_outcomes(failed=3)
    said = " ".join(result.stdout.str().split())
    assert "test_the_wrong_way_round: energy() was called twice in one test;" in said
    assert "(with pytest-benchmark: energy(benchmark, fn, ...))" in said
    assert said.count("takes the benchmark fixture itself and a workload") >= 2


def test_energy_tests_alone_or_none_of_them(project: Project) -> None:
    project.tests(
        "@quick\ndef test_it(energy):\n    energy(generate)\n\n"
        "@quick\ndef test_dynamic(request):\n    request.getfixturevalue('energy')(generate)\n\n"
        "def test_late(request):\n    request.getfixturevalue('energy')(generate)\n" + PLAIN
    )
    result = project.run("--energy-only", "-rs")
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*measures no energy (--energy-only)"])
    project.run("--energy-skip").assert_outcomes(passed=1, skipped=3)
    result = project.run("--energy-skip", "--energy-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --energy-only and --energy-skip together leave no test: *"])
