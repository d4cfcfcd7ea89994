"""Figures of rounds that are known to the last joule, and which GPUs an engine's word leaves to be measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from pytest_tokenpower.analysis.figures import figures, nodes_of, watts_of
from pytest_tokenpower.analysis.rounds import denominator_of, gated, unknown_figure
from pytest_tokenpower.core.figures import FIGURES
from pytest_tokenpower.core.records import Figure, PhaseRecord, RoundRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.types import Provenance
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.types import Conditions, Device, Reading
from pytest_tokenpower.runner.telemetry import TelemetrySession

ONE, TWO = "GPU-10000000-aaaa-0000-0000-000000000000", "GPU-20000000-aaaa-0000-0000-000000000000"
SECOND = 10**9
AMD = "7cff74a1-0000-1000-8042-000000000000"


def rounds(boards: dict[str, float | None], phases: bool = True) -> list[RoundRecord]:
    """Six rounds of two executions in 4 s: 1200 J, 200 prompt and 100 generated tokens in 10 responses."""
    parts = {
        "prefill": PhaseRecord(300.0, 1.0, 0.5),
        "decode": PhaseRecord(750.0, 1.0, 3.0),
        "between steps": PhaseRecord(50.0, 1.0, 0.25),
    }
    return [
        RoundRecord(
            start_ns=at * 4_000_000_000,
            seconds=4.0,
            joules=1200.0,
            stderr_joules=1.0,
            prompt_tokens=200,
            generated_tokens=100,
            responses=10,
            repeats=2,
            phases=parts if phases else {},
            device_joules=boards,
        )
        for at in range(6)
    ]


def test_prompt_tokens_from_a_cache_were_not_prefilled() -> None:
    plain = rounds({ONE: 1200.0})
    cached = [replace(one, cached_prompt_tokens=160) for one in plain]
    before, found = figures(plain), figures(cached)
    assert found["joules_per_prompt_token"].value == pytest.approx(
        5 * before["joules_per_prompt_token"].value
    )
    assert found["prefill_tokens_per_second"].value == pytest.approx(
        before["prefill_tokens_per_second"].value / 5
    )
    assert found["joules_per_token"] == before["joules_per_token"]
    whole = figures([replace(one, cached_prompt_tokens=200) for one in plain])
    assert "joules_per_prompt_token" not in whole


@pytest.mark.parametrize("phases", [True, False])
def test_work_that_generates_nothing_is_all_prefill(phases: bool) -> None:
    found = figures([replace(one, generated_tokens=0) for one in rounds({ONE: 1200.0}, phases=phases)])
    assert found["joules_per_prompt_token"].value == pytest.approx(6.0)
    assert found["prefill_tokens_per_second"].value == pytest.approx(50.0)
    assert found["joules_per_total_token"].value == pytest.approx(6.0)
    assert found["joules_per_response"].value == pytest.approx(120.0)
    assert not {"joules_per_token", "tokens_per_second", "prefill_joules_per_token"} & set(found)


@pytest.mark.parametrize(
    ("changes", "asked", "expected"),
    [
        ({}, None, (1200.0, 4.0, 100)),
        ({}, "prompt_token", (300.0, 0.5, 200)),
        ({}, "total_token", (1200.0, 4.0, 300)),
        ({}, "response", (1200.0, 4.0, 10)),
        ({"generated_tokens": 0}, None, (1200.0, 4.0, 200)),
        ({"generated_tokens": 0, "cached_prompt_tokens": 50}, None, (1200.0, 4.0, 150)),
        ({"generated_tokens": 0, "prompt_tokens": 0}, None, (1200.0, 4.0, 10)),
        ({"generated_tokens": 0, "cached_prompt_tokens": 200}, None, (1200.0, 4.0, 10)),
    ],
)
def test_what_is_compared_follows_from_the_counts_or_is_asked_for(
    changes: dict[str, int], asked: str | None, expected: tuple[float, float, int]
) -> None:
    done = [replace(one, **changes) for one in rounds({ONE: 1200.0})]
    assert {(part.joules, part.seconds, part.units) for part in gated(done, asked)} == {expected}
    assert unknown_figure(done, asked or denominator_of(done)) == ""


@pytest.mark.parametrize(
    ("changes", "asked", "why"),
    [
        ({"phases": {}}, "prompt_token", "the energy of the prefill is not told apart"),
        ({"cached_prompt_tokens": 200}, "prompt_token", "all prompt tokens came from a prefix cache"),
        ({"prompt_tokens": 0}, "prompt_token", "some executions have none"),
        ({"responses": 0}, "response", "some executions have none"),
    ],
)
def test_what_cannot_be_compared_says_why(changes: dict[str, int], asked: str, why: str) -> None:
    done = rounds({ONE: 1200.0})
    done = (
        [*done[:-1], replace(done[-1], **changes)]
        if "cached" not in str(changes)
        else [replace(one, **changes) for one in done]
    )
    assert gated(done, asked) == []
    assert why in unknown_figure(done, asked)


def test_an_execution_without_tokens_among_others_is_no_figure() -> None:
    first, *rest = rounds({ONE: 1200.0})
    done = [replace(first, generated_tokens=0), *rest]
    assert gated(done) == []
    assert unknown_figure(done, "token").startswith("some executions generated no tokens, and others did")
    assert "joules_per_token" not in figures(done)
    none = [replace(one, generated_tokens=0) for one in done]
    assert "no tokens were generated: per='prompt_token'" in unknown_figure(none, "token")


def test_undivided_joules_are_in_the_error_of_a_phase_and_no_number_of_rounds_lessens_it() -> None:
    def with_undivided(joules: float) -> dict[str, Figure]:
        return figures(
            [
                replace(one, phases={n: replace(p, undivided_joules=joules) for n, p in one.phases.items()})
                for one in rounds({ONE: 1200.0}) * 5
            ]
        )

    plain, found = with_undivided(0.0), with_undivided(12.0)
    for name, joules in (
        ("prefill_joules_per_token", 300.0),
        ("joules_per_prompt_token", 300.0),
        ("decode_watts", 750.0),
    ):
        error = np.hypot(plain[name].stderr / plain[name].value, 12.0 / np.sqrt(12.0) / joules)
        assert found[name].stderr / found[name].value == pytest.approx(error, rel=0.05)
    assert found["joules_per_token"] == plain["joules_per_token"]


def test_every_figure_is_what_its_name_and_unit_say() -> None:
    found = {name: figure.value for name, figure in figures(rounds({ONE: 900.0, TWO: 300.0})).items()}
    assert found == pytest.approx(
        {
            "joules_per_token": 12.0,
            "joules_per_prompt_token": 1.5,
            "joules_per_total_token": 4.0,
            "prefill_joules_per_token": 3.0,
            "decode_joules_per_token": 7.5,
            "between_steps_joules_per_token": 0.5,
            "joules_per_response": 120.0,
            "joules": 600.0,
            "prefill_joules": 150.0,
            "decode_joules": 375.0,
            "mean_watts": 300.0,
            "tokens_per_second": 25.0,
            "seconds": 2.0,
            "prefill_watts": 600.0,
            "decode_watts": 250.0,
            "prefill_tokens_per_second": 400.0,
            # 90 of 100 tokens: the first of each response comes out of its prefill.
            "decode_tokens_per_second": 30.0,
            "joule_seconds_per_response": 240.0,
            "power_imbalance": 0.5,
        }
    )
    assert set(found) <= set(FIGURES)


@pytest.mark.parametrize(
    ("boards", "imbalance"),
    [
        ({ONE: 1200.0}, None),
        ({ONE: 800.0, TWO: 400.0, "rapl:package-0": 50.0}, 1 / 3),
        ({ONE: 600.0, "cpu-model": 600.0}, None),
        ({AMD: 400.0, AMD.replace("7", "8"): 200.0}, 1 / 3),
        ({ONE: 600.0, TWO: None}, None),
    ],
)
def test_imbalance_is_of_gpus(boards: dict[str, float | None], imbalance: float | None) -> None:
    found = figures(rounds(boards)).get("power_imbalance")
    assert (None if found is None else found.value) == (
        None if imbalance is None else pytest.approx(imbalance)
    )


def test_imbalance_of_nodes_is_of_their_gpus_together() -> None:
    three, four = (ONE.replace(ONE[4], digit) for digit in "34")
    boards: dict[str, float | None] = {
        ONE: 500.0,
        TWO: 100.0,
        three: 200.0,
        four: 200.0,
        "host-a/rapl": 900.0,
    }
    nodes = nodes_of(
        {f"{ONE}.node": "a", f"{TWO}.node": "a", f"{three}.node": "b", f"{four}.node": "b", "node": "x"}
    )
    assert figures(rounds(boards), nodes)["node_imbalance"].value == pytest.approx(0.2)
    assert figures(rounds(boards), nodes)["power_imbalance"].value == pytest.approx(1.0)
    assert "node_imbalance" not in figures(rounds(boards), {ONE: "a", TWO: "a"})
    assert watts_of(rounds(boards))[ONE] == pytest.approx(125.0)


def test_without_phases_no_figure_of_a_phase() -> None:
    assert not [
        name for name in figures(rounds({ONE: 1200.0}, phases=False)) if "prefill" in name or "decode" in name
    ]


def bench(*ids: str, provenance: Provenance = "measured", cpu: bool = False) -> TelemetrySession:
    devices = [Device(each, "gpu", "H100", "nvml", provenance) for each in ids]
    devices += [Device("rapl:package-0", "cpu", "CPU", "rapl", provenance)] if cpu else []
    return TelemetrySession(Collector(()), devices)


@pytest.mark.parametrize(
    ("telemetry", "asked", "expected"),
    [
        (bench(ONE, TWO), [TWO], [TWO]),
        (bench(ONE, TWO), [ONE, TWO], [ONE, TWO]),
        (bench(ONE, TWO, provenance="simulated"), ["GPU-99999999-of-the-engine"], [ONE, TWO]),
        (bench(ONE, TWO, provenance="simulated"), [], [ONE, TWO]),
        (bench(cpu=True), [], ["rapl:package-0"]),
        (bench(cpu=True), [ONE], ["rapl:package-0"]),
    ],
)
def test_an_engines_gpus_are_what_is_measured(
    telemetry: TelemetrySession, asked: Sequence[str], expected: Sequence[str]
) -> None:
    assert [device.id for device in telemetry.on_gpus(asked).devices_in_use(())] == expected


@pytest.mark.parametrize(
    ("telemetry", "asked", "complaint"),
    [
        (
            bench(ONE),
            [ONE, TWO],
            f"the engine runs on {TWO}, which this run does not measure .it measures {ONE}",
        ),
        (bench(ONE), [], "the engine runs on no GPU, and GPUs are what this run measures"),
    ],
)
def test_gpus_that_are_not_measured_are_named(
    telemetry: TelemetrySession, asked: Sequence[str], complaint: str
) -> None:
    with pytest.raises(MeterUnavailable, match=complaint):
        telemetry.on_gpus(asked)


def window(*devices: str) -> RoundWindow:
    return RoundWindow(0, 1, TokenCount(1, 1), devices=devices or None)


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [
        ([ONE], [], [ONE]),
        # What was measured then is what a replay is of, whatever its own engine runs on.
        ([TWO], [ONE], [TWO]),
        ([ONE, TWO], [ONE], [ONE, TWO]),
        ([], [TWO], [TWO]),
        # The figure was a CPU's: that says nothing of the GPUs beside it.
        (["rapl:package-0"], [], [ONE, TWO]),
    ],
)
def test_a_recorded_round_is_of_the_gpus_that_it_names(
    recorded: Sequence[str], asked: Sequence[str], expected: Sequence[str]
) -> None:
    telemetry = bench(ONE, TWO, provenance="replayed").on_gpus(asked)
    for device in telemetry.devices:
        telemetry.collector.timeline.add_device(device)
    assert [device.id for device in telemetry.devices_in_use([window(*recorded)])] == expected


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        # Of the second board, on a node that is asked last, was read too late for a short window.
        ((SECOND, False), (3 * SECOND, False), [ONE, TWO]),
        ((SECOND, True), (3 * SECOND, False), [ONE]),
        ((SECOND, False), (3 * SECOND, True), [TWO]),
        # Long ago is no word on now, nor is a process that cannot be seen from here a foreign one.
        ((100 * SECOND, True), (0, False), [ONE, TWO]),
        ((SECOND, False), (SECOND, None), [TWO]),
    ],
)
def test_the_boards_in_use_are_told_by_what_was_read_nearest_to_the_window(
    one: tuple[int, bool], two: tuple[int, bool | None], expected: Sequence[str]
) -> None:
    telemetry = bench(ONE, TWO)
    timeline = telemetry.collector.timeline
    for device in telemetry.devices:
        timeline.add_device(device)
    start_ns = max(one[0] - SECOND // 2, 0)
    for name, (t_ns, own) in ((ONE, one), (TWO, two)):
        timeline.append(Reading(name, conditions=Conditions(t_ns, own_process=own)))
    measured = RoundWindow(start_ns, start_ns + SECOND, TokenCount(1, 1))
    assert [device.id for device in telemetry.devices_in_use([measured])] == expected
