"""Joules at an SLO: latencies as they are recorded, and the cheapest point that surely holds them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from msgspec.structs import replace

from pytest_tokenpower.core.records import Figure, MeasurementRecord
from pytest_tokenpower.core.windows import Latency
from pytest_tokenpower.engines._estimated_steps import Trace
from pytest_tokenpower.engines.openai.engine import latency_of as latency_of_trace
from pytest_tokenpower.engines.vllm.requests import latency_of
from pytest_tokenpower.reporting.suites import objective_lines
from pytest_tokenpower.suites.claims import runs_of
from pytest_tokenpower.suites.grid import Suite
from pytest_tokenpower.suites.objectives import judge_objectives
from tests.support.projects import Project

SUITE = """\
[axes]
model = "llama-3.1-8b"
engine = "vllm-server"
batch = 64
arrivals = [{ poisson = 1 }, { poisson = 8 }, { poisson = 32 }]

[[slo]]
name = "chat"
ttft_ms = 100
tpot_ms = 20
"""


def point(
    rate: int, joules: float, ttft: tuple[float, float] | None, tpot: float = 0.01
) -> MeasurementRecord:
    figures = {"joules_per_token": Figure(joules, 0.001), "tpot_p90_seconds": Figure(tpot, 0.0)}
    if ttft is not None:
        figures["ttft_p90_seconds"] = Figure(*ttft)
    test = f"s.energy.toml::llama-3.1-8b-vllm-server-b64-rate{rate}"
    return MeasurementRecord(test, {}, "measured", "gpu", "ring", (), True, figures=figures)


def outcome(*points: MeasurementRecord) -> tuple[str, list[str]]:
    suite = Suite.parse(SUITE, Path("s.energy.toml"))
    [found] = judge_objectives(suite, runs_of(suite, points))
    head, *table = objective_lines(found)
    return head, [line.split()[-1] for line in table[2:]]


def test_the_cheapest_point_that_surely_holds_it_is_named() -> None:
    head, words = outcome(
        point(1, 3.0, (0.02, 0.001)), point(8, 1.0, (0.05, 0.001)), point(32, 0.5, (0.095, 0.01))
    )
    assert head == (
        "SLO chat (TTFT p90 ≤ 100 ms, TPOT p90 ≤ 20 ms): cheapest is llama-3.1-8b-vllm-server-b64-rate8, 1.000 J/token"
    )
    # The cheapest of all is under the limit as it was read, and not surely.
    assert words == ["slow", "holds", "holds"]


def test_a_point_holds_it_in_each_of_its_runs_or_does_not() -> None:
    slow = point(8, 1.2, (0.2, 0.001))
    again = replace(slow, test=f"{slow.test}@run2")
    head, words = outcome(point(1, 3.0, (0.02, 0.001)), point(8, 1.0, (0.05, 0.001)), again)
    assert head.endswith("cheapest is llama-3.1-8b-vllm-server-b64-rate1, 3.000 J/token")
    assert words == ["slow", "holds"]
    fast = replace(point(8, 1.2, (0.06, 0.001)), test=again.test)
    head, _ = outcome(point(1, 3.0, (0.02, 0.001)), point(8, 1.0, (0.05, 0.001)), fast)
    assert head.endswith("cheapest is llama-3.1-8b-vllm-server-b64-rate8, 1.100 J/token")


def test_every_limit_has_to_be_held() -> None:
    head, words = outcome(point(1, 3.0, (0.02, 0.001), tpot=0.03), point(8, 1.0, (0.2, 0.001)))
    assert head.endswith("no cell holds it")
    assert words == ["slow", "slow"]


def test_a_latency_that_was_not_measured_is_not_held() -> None:
    head, words = outcome(point(1, 3.0, None))
    assert head.endswith("no latency was measured")
    assert words == ["known"]


def test_latencies_of_a_run_are_figures(project: Project) -> None:
    project.file("slo.energy.toml", SUITE + "\n[limits]\nmin_rounds = 2\nmax_rounds = 2\n")
    result, run = project.measure("--energy-simulated-engines")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["SLO chat (*): cheapest is llama-3.1-8b-vllm-server-b64-rate32, *"])
    by_rate = {
        one.test.rpartition("rate")[2]: {name: figure.value for name, figure in one.figures.items()}
        for one in run.measurements
    }
    for figures in by_rate.values():
        assert (
            0 < figures["ttft_p50_seconds"] <= figures["ttft_p90_seconds"] <= figures["ttft_p99_seconds"] < 1
        )
        assert 0 < figures["tpot_p50_seconds"] < 0.1
    # The busier board has them wait.
    assert by_rate["32"]["ttft_p90_seconds"] > by_rate["1"]["ttft_p90_seconds"]


def test_vllm_tells_them_from_when_a_request_was_queued() -> None:
    def output(tokens: int, **metrics: float) -> SimpleNamespace:
        return SimpleNamespace(
            metrics=SimpleNamespace(**metrics), outputs=[SimpleNamespace(token_ids=[1] * tokens)]
        )

    times = {"queued_ts": 10.0, "first_token_ts": 10.25, "last_token_ts": 11.25}
    assert latency_of(output(5, **times)) == Latency(0.25, 0.25)
    assert latency_of(output(1, **times | {"last_token_ts": 10.25})) == Latency(0.25, None)
    assert latency_of(output(5, **times | {"queued_ts": 0.0})) is None
    assert latency_of(SimpleNamespace(outputs=[])) is None


def test_a_client_sees_them_from_when_it_sent_a_request() -> None:
    trace = Trace(1_000_000_000, 8, [(1_250_000_000, 2), (1_500_000_000, 1), (2_250_000_000, 3)])
    assert latency_of_trace(trace) == Latency(0.25, 0.25)
    assert latency_of_trace(Trace(0, 8, [(1_000_000, 2)])) == Latency(0.001, None)
