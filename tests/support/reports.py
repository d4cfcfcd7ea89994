"""Reports to render: of ordinary runs, of many tests, and of a run whose every text is hostile."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.analysis.power_curves import DrawnCurve, PhaseSpan, PowerCurves
from pytest_tokenpower.core.records import (
    MeasurementRecord,
    PhaseRecord,
    RoundRecord,
    RunRecord,
    ScopeFigure,
    VerdictRecord,
)
from pytest_tokenpower.core.settings import Factors
from pytest_tokenpower.gate.history import History, Series, StoredPoint
from pytest_tokenpower.reporting.report import Report
from pytest_tokenpower.stats.types import RunSummary
from pytest_tokenpower.store.store import StoredFile

SECOND = 1_000_000_000

FACTORS = Factors(0.3, "EUR", 380.0, "as configured (carbon_intensity)", 1.2)

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> @everyone #1 https://evil.example/ "
    "[text](https://evil.example) `` ` ``` | a | b | {{policy}} <!-- --> &amp; ::error::x %0A "
    "\u202e\u2028\n# Title\n```\n\x1b[31m"
)


def verdict(kind: str, change: float, against: str = "main@1a2b3c4") -> VerdictRecord:
    return VerdictRecord(
        kind, against, value=0.25 * (1 + change), baseline_value=0.25, change=change, change_low=change - 0.014,
        change_high=change + 0.014, threshold=0.03, baseline_runs=("a", "b"),
    )  # fmt: skip


def measured(
    test: str = "tests/test_energy.py::test_chat[bf16]",
    *,
    rounds: int = 10,
    watts: float = 500.0,
    **more: Any,
) -> MeasurementRecord:
    """Return rounds of 2 s and 1000 tokens with 0.2 s of prefill; the third is dropped."""
    each = tuple(
        RoundRecord(
            start_ns=100 * SECOND + 2 * at * SECOND, seconds=2.0, joules=2 * watts * (1 + 0.004 * math.sin(at)),
            stderr_joules=1.0, prompt_tokens=64, generated_tokens=1000, responses=4,
            phases={"prefill": PhaseRecord(0.2 * watts, 1.0, 0.2), "decode": PhaseRecord(1.8 * watts, 1.0, 1.8)},
            peak_watts=650.0, temperature_celsius=61.0 + at / 10, sm_clock_mhz=1980.0,
            reasons=("GPU-0: another process used the GPU (pid 7)",) if at == 2 else (),
        )
        for at in range(rounds)
    )  # fmt: skip
    fields: dict[str, Any] = {
        "test": test,
        "key": {"gpu.count": 1, "gpu.name": "NVIDIA H100 80GB HBM3", "engine": "vllm", "axis.dtype": "bf16"},
        "facts": {"param.dtype": "bf16", "engine.max_num_seqs": 64}, "provenance": "measured", "scope": "gpu",
        "method": "power ring", "rounds": each, "comparable": True, "figures": figures(each),
    }  # fmt: skip
    return MeasurementRecord(**{**fields, **more})


def curves(steps: int = 1000, rounds: int = 10, spans: int | None = None) -> PowerCurves:
    """Power over the rounds of :func:`measured`, half a second before and after them included."""
    length_us = (2 * rounds + 1) * 1_000_000
    ends = tuple(length_us * (at + 1) // steps for at in range(steps))
    watts = tuple(round(500 + 80 * math.sin(at / 7), 1) for at in range(steps))
    count = rounds if spans is None else spans // 2
    every = (length_us - 1_000_000) // count
    phases = tuple(
        PhaseSpan(phase, 500_000 + at * every + low, 500_000 + at * every + high)
        for at in range(count)
        for phase, low, high in (("prefill", 0, every // 10), ("decode", every // 10, every))
    )
    return PowerCurves(
        100 * SECOND - SECOND // 2,
        (DrawnCurve("GPU-0f194165-0740", "power ring", steps, ends, watts, watts, watts),),
        phases,
    )


def run(*measurements: MeasurementRecord, **more: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "id": "85adb6cb0000", "created": "2026-11-28T03:42:00.000000Z", "commit": "289df321df86" + "0" * 28,
        "branch": "topic", "dirty": False, "host": {"hostname": "runner-1", "cpus": 64}, "versions": {"vllm": "0.26.1"},
        "command": ("tests/energy", "--energy-baseline=main"),
    }  # fmt: skip
    return RunRecord(measurements=measurements, **{**fields, **more})


def report(*measurements: MeasurementRecord, **more: Any) -> Report:
    one = run(*measurements)
    return Report((one,), {(one.id, each.test): curves() for each in measurements}, **more)


def ordinary() -> Report:
    """One test of each usual verdict, one that was invalid, and factors."""
    return report(
        measured(verdicts=(verdict("passed", 0.003),)),
        measured("tests/test_energy.py::test_chat[fp8]", watts=520, verdicts=(verdict("regressed", 0.061),)),
        measured(
            "tests/test_energy.py::test_budget",
            verdicts=(VerdictRecord("over budget", "joules_per_token", value=1.0, change=0.1, change_low=0.05,
                                    change_high=0.15, threshold=0.9),),
        ),
        measured("tests/test_energy.py::test_new", verdicts=(VerdictRecord("no baseline", "main", reason="none"),)),
        measured(
            "tests/test_energy.py::test_hot", comparable=False, figures={}, reasons=("too hot",),
            verdicts=(VerdictRecord("invalid", reason="too hot"),),
        ),
        factors=FACTORS,
    )  # fmt: skip


def many(count: int = 200) -> Report:
    """So many tests of 30 rounds, 6000 readings and 50 stored runs each."""
    one = run(
        *(
            measured(f"tests/energy/test_suite.py::test_model[{at}-llama-8b-fp8-batch-16]", rounds=30,
                     verdicts=(verdict("regressed" if at % 9 == 0 else "passed", 0.001 * at),))
            for at in range(count)
        )
    )  # fmt: skip
    drawn = curves(6000, 30, 2000)
    past = {each.test: history(each) for each in one.measurements}
    return Report((one,), {(one.id, each.test): drawn for each in one.measurements}, past, factors=FACTORS)


def history(of: MeasurementRecord, runs: int = 50) -> History:
    """So many stored runs of a test, one on each commit of main."""
    commits = tuple(f"{at:07x}" + "0" * 33 for at in range(runs))
    points = tuple(
        StoredPoint(
            StoredFile("", "", f"20261101T{at:06}.000000Z", commit[:12], "clean", f"{at:08x}", None),
            f"{at:032x}", commit, of, RunSummary(0.01 * math.sin(at * at), 1e-6, 30), "passed",
        )
        for at, commit in enumerate(commits)
    )  # fmt: skip
    return History(of.test, "main", commits[::-1], (Series(of.key, points, ()),), 0)


def hostile() -> Report:
    """Return a run whose every text is HOSTILE, as a fork may have written it."""
    bad = msgspec.structs.replace(
        measured(
            HOSTILE, provenance=HOSTILE, scope=HOSTILE, method=HOSTILE,
            verdicts=(
                msgspec.structs.replace(
                    verdict("regressed", 0.06, HOSTILE), reason="", notes=(HOSTILE,), next_step=HOSTILE,
                    names=None, baseline_runs=(HOSTILE,),
                ),
            ),
            other_scopes=(ScopeFigure(HOSTILE, HOSTILE, None, HOSTILE),),
        ),
        key={HOSTILE: HOSTILE, "gpu.name": HOSTILE},
        facts={HOSTILE: HOSTILE, "param.x": HOSTILE},
    )  # fmt: skip
    drawn = curves()
    drawn = msgspec.structs.replace(
        drawn,
        devices=(msgspec.structs.replace(drawn.devices[0], device=HOSTILE, method=HOSTILE),),
        spans=tuple(PhaseSpan(HOSTILE, span.start_us, span.end_us) for span in drawn.spans),
    )
    one = run(
        bad, id=HOSTILE, branch=HOSTILE, name=HOSTILE, host={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE},
        command=(HOSTILE,),
    )  # fmt: skip
    return Report((one,), {(one.id, HOSTILE): drawn}, factors=Factors(0.3, HOSTILE, 380.0, HOSTILE))


def odd() -> Report:
    """Return what can be missing: joules, tokens, an interval, rounds, readings.

    And two boards with readings in buckets.
    """
    plain = measured()
    lost = msgspec.structs.replace(
        plain.rounds[1], joules=None, stderr_joules=None, temperature_celsius=None, reasons=("lost",)
    )
    idle = msgspec.structs.replace(
        plain.rounds[3], generated_tokens=0, prompt_tokens=0, reasons=("no tokens",)
    )
    peak = VerdictRecord("passed", "peak_watts", value=650.0, change=-0.07, threshold=700.0)
    first = msgspec.structs.replace(
        plain, rounds=(plain.rounds[0], lost, plain.rounds[2], idle), verdicts=(peak,), attempts=2
    )
    compared = measured("t.py::variants", variants={"baseline": plain.rounds}, restarts=(plain.rounds, ()))
    none = measured("t.py::none", rounds=0, comparable=False, reasons=("no round was measured",))
    one = run(first, compared, none, commit=None, branch=None, dirty=None)
    drawn = curves(25_000)
    gap = (None,) * 100
    holed = msgspec.structs.replace(
        drawn.devices[0], device="GPU-1", mean=gap + drawn.devices[0].mean[100:],
        low=gap + drawn.devices[0].low[100:], high=gap + drawn.devices[0].high[100:],
    )  # fmt: skip
    return Report(
        (one,),
        {
            (one.id, first.test): msgspec.structs.replace(drawn, devices=(drawn.devices[0], holed)),
            (one.id, "t.py::variants"): curves(1, spans=2),
        },
        no_history="no run is stored in /store",
    )


def embedding(test: str = "tests/test_energy.py::test_embed") -> MeasurementRecord:
    """Return rounds of 2 s that read 1000 prompt tokens and generate none: compared per prompt token."""
    rounds = tuple(
        RoundRecord(100 * SECOND + at * 2 * SECOND, 2.0, 400.0 + at, 0.5, 1000, 0, responses=10)
        for at in range(6)
    )
    key = {"gpu.count": 1, "gpu.name": "NVIDIA H100 80GB HBM3", "denominator": "prompt_token"}
    return msgspec.structs.replace(measured(test, key=key), rounds=rounds, figures=figures(rounds))
