"""What a person reads, to the letter: the energy section, its notes, and the messages of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from pytest_tokenpower.analysis.figures import figures
from pytest_tokenpower.core.records import (
    OTHER_VARIANT,
    MeasurementRecord,
    PhaseRecord,
    PhaseSplit,
    RoundRecord,
    VerdictRecord,
)
from pytest_tokenpower.core.text import energy_unit
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.gate.verdict import Policy, judge_ceilings
from pytest_tokenpower.reporting.columns import Layout, layout, table
from pytest_tokenpower.reporting.terminal import summary
from pytest_tokenpower.runner.session import Session
from pytest_tokenpower.store.baseline import ComparableRuns
from tests.support.verdicts import judge_stored, text

KEY: dict[str, Fact] = {"gpu.count": 1, "gpu.name": "NVIDIA H100 80GB HBM3"}
WOBBLE = (1.0, 1.004, 0.997, 1.001, 0.998, 1.0)


def measured(
    test: str = "test_chat",
    *,
    watts: float = 500.0,
    seconds: float = 10.0,
    prefill: float | None = 0.1,
    verdicts: Sequence[VerdictRecord] = (),
    reasons: tuple[str, ...] = (),
    dropped: tuple[str, ...] = (),
    provenance: str = "measured",
    scope: str = "gpu",
    split: PhaseSplit | None = None,
    temperature: float | None = None,
    estimated: bool = False,
) -> MeasurementRecord:
    """Six rounds of 20 000 tokens each; ``prefill`` is that phase's share of time and energy."""
    rounds = tuple(
        RoundRecord(
            start_ns=at,
            seconds=seconds,
            joules=watts * seconds * factor,
            stderr_joules=1.0,
            prompt_tokens=4000,
            generated_tokens=20_000,
            responses=40,
            phases={}
            if prefill is None
            else {
                "prefill": PhaseRecord(watts * prefill, 1.0, prefill, estimated),
                "decode": PhaseRecord(
                    watts * (seconds * factor - prefill), 1.0, seconds - prefill, estimated
                ),
            },
            peak_watts=650.0,
            temperature_celsius=temperature,
            reasons=dropped if at == 2 else (),
        )
        for at, factor in enumerate(WOBBLE)
    )
    return MeasurementRecord(
        test=f"tests/test_energy.py::{test}",
        key=KEY,
        provenance=provenance,
        scope=scope,
        method="power ring",
        rounds=rounds,
        comparable=not reasons,
        phase_split=split,
        reasons=reasons,
        figures={} if reasons else figures(rounds),
        verdicts=tuple(verdicts),
    )


def compared(kind: str, change: float, *notes: str, provisional: bool = False) -> VerdictRecord:
    return VerdictRecord(
        kind,
        "main@1a2b3c4",
        value=0.25 * (1 + change),
        baseline_value=0.25,
        notes=notes,
        change=change,
        change_low=change - 0.014,
        change_high=change + 0.014,
        threshold=0.03,
        baseline_runs=("a",) if provisional else ("a", "b", "c"),
        provisional=provisional,
    )


def shown(
    config: pytest.Config,
    measurements: Sequence[MeasurementRecord],
    *,
    baselines: Sequence[str] = (),
    problems: dict[str, str] | None = None,
    layout: Layout = Layout(),  # noqa: B008
    width: int = 120,
    verbosity: int = 0,
) -> str:
    """Return the energy section; what a line ends with and nobody sees is cut off."""
    out = StringIO()
    reporter = pytest.TerminalReporter(config, out)
    session = SimpleNamespace(
        claims=(), baselines=[SimpleNamespace(label=label, note="") for label in baselines]
    )
    summary(
        reporter,
        measurements,
        cast(Session, session),
        problems or {},
        layout=layout,
        width=width,
        verbosity=verbosity,
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


NO_BASELINE = VerdictRecord(
    "no baseline",
    "main@1a2b3c4",
    reason="no run is stored in /store",
    threshold=0.03,
)

SECTION = """
=== energy: 1 INVALID, 1 REGRESSED, 1 OVER BUDGET, 1 failed, 1 inconclusive, 1 no baseline, 1 improved, 3 passed, … ====
1x NVIDIA H100 80GB HBM3, power ring (gpu energy)
baseline main@1a2b3c4

test             mJ/token  ±95 %  prefill  decode    W  tok/s   change   95 % interval  verdict
----------------------------------------------------------------------------------------------------
test_chat[bf16]     249.9  0.3 %    2.500   247.4  500   2000   +0.3 %    [-1.1, +1.7]  passed
test_chat[fp8]      175.0  0.3 %    1.750   173.2  350   2000  -30.1 %  [-31.5, -28.7]  improved
test_eager          324.9  0.3 %    2.500   322.4  500   1538  +31.0 %  [+29.6, +32.4]  REGRESSED
test_long           249.9  0.3 %    2.500   247.4  500   2000   +2.1 %    [+0.7, +3.5]  inconclusive
test_new            249.9  0.3 %                   500   2000                           no baseline
test_budget         249.9  0.3 %                   500   2000   +0.1 %    [-1.3, +1.5]  OVER BUDGET
test_within         249.9  0.3 %                   500   2000                           passed
test_first          249.9  0.3 %    2.500   247.4  500   2000   +0.1 %    [-1.3, +1.5]  passed
test_hot                                                                                INVALID
test_broken                                                                             failed
test_shared         250.1  0.4 %    2.500   247.6  500   2000                           measured
Per generated token. ±95 %: by this run's rounds alone; what differs between runs is in the interval.

improved -30.1 % (limit 3 %): test_chat[fp8] takes 174.8 mJ/token; main@1a2b3c4 took 250.0 (3 runs).
  -30.1 % [-31.5, -28.7] (95 % interval).
  A further line.
inconclusive +2.1 % (limit 3 %): test_long takes 255.2 mJ/token; main@1a2b3c4 took 250.0 (3 runs).
  +2.1 % [+0.7, +3.5] (95 % interval).
  Why it was not decided.
no baseline: test_new: nothing to compare with on main@1a2b3c4: no run is stored in /store
passed +0.1 % (limit 3 %): test_first takes 250.2 mJ/token; main@1a2b3c4 took 250.0 (1 run).
  +0.1 % [-1.3, +1.5] (95 % interval).
  What it rests on.
  Provisional: fewer than three occasions of this test are stored, so that its own noise is not known.
test_shared: 1 of 6 rounds dropped: GPU-1: another process used the GPU (pid 7)

2 stored files skipped:
  /store/runs/a.json: not readable as JSON (truncated)
  /store/runs/b: its name is not one of a stored run
"""


def test_the_section_has_a_row_for_every_verdict_and_a_note_for_what_needs_one(
    pytestconfig: pytest.Config,
) -> None:
    over = VerdictRecord("over budget", "joules", change=0.1, change_low=0.05, change_high=0.15)
    within = VerdictRecord("passed", "joules", change=-0.1, change_low=-0.15, change_high=-0.05)
    text = shown(
        pytestconfig,
        [
            measured("test_chat[bf16]", verdicts=[compared("passed", 0.003, "…")]),
            measured("test_chat[fp8]", watts=350, verdicts=[compared("improved", -0.301, "A further line.")]),
            measured("test_eager", seconds=13, verdicts=[compared("regressed", 0.31, "…")]),
            measured("test_long", verdicts=[compared("inconclusive", 0.021, "Why it was not decided.")]),
            measured("test_new", prefill=None, verdicts=[NO_BASELINE]),
            measured("test_budget", prefill=None, verdicts=[over, compared("passed", 0.001, "…")]),
            measured("test_within", prefill=None, verdicts=[within]),
            measured(
                "test_first", verdicts=[compared("passed", 0.001, "What it rests on.", provisional=True)]
            ),
            measured("test_hot", reasons=("too hot",), verdicts=[VerdictRecord("invalid", reason="…")]),
            measured("test_broken", reasons=("the test failed by itself",)),
            measured("test_shared", dropped=("GPU-1: another process used the GPU (pid 7)",)),
        ],
        baselines=["main@1a2b3c4"],
        problems={
            "/store/runs/b": "its name is not one of a stored run",
            "/store/runs/a.json": "not readable as JSON (truncated)",
        },
    )
    assert text == SECTION.strip("\n")


MODELLED = """
================================================== energy: 1 measured ==================================================
MODELLED, not measured: 1x NVIDIA H100 80GB HBM3, power ring (cpu energy)

test       mJ/token  ±95 %  prefill  decode    W  tok/s  verdict
-----------------------------------------------------------------
test_chat     249.9  0.3 %    2.500   247.4  500   2000  measured
Per generated token. ±95 %: by this run's rounds alone; what differs between runs is in the interval.
"""


def test_what_was_not_measured_says_so_first(pytestconfig: pytest.Config) -> None:
    text = shown(pytestconfig, [measured(provenance="modelled", scope="cpu")])
    assert text == MODELLED.strip("\n")


def test_a_test_that_read_nothing_has_no_line_of_its_own_source(pytestconfig: pytest.Config) -> None:
    nothing = msgspec.structs.replace(measured("test_broken"), method="", rounds=(), comparable=False)
    source = "1x NVIDIA H100 80GB HBM3, power ring (gpu energy)"
    beside = shown(pytestconfig, [measured(), nothing]).splitlines()
    assert [line for line in beside if line.startswith("1x")] == [source]
    alone = shown(pytestconfig, [nothing]).splitlines()
    assert [line for line in alone if line.startswith("1x")] == ["1x NVIDIA H100 80GB HBM3 (gpu energy)"]


PHASES = """
================================================== energy: 4 measured ==================================================
1x NVIDIA H100 80GB HBM3, power ring (gpu energy)

test          mJ/token  ±95 %  prefill  decode    W  tok/s  verdict
--------------------------------------------------------------------
test_pure        249.9  0.3 %    2.500   247.4  500   2000  measured
test_server      249.9  0.3 %   ~2.500  ~247.4  500   2000  measured
test_chunked     249.9  0.3 %    2.500   247.4  500   2000  measured
test_poisson     249.9  0.3 %                   500   2000  measured
Per generated token. ±95 %: by this run's rounds alone; what differs between runs is in the interval.

test_chunked: prefill and decode: 36 % of the steps' energy was in mixed steps, divided by least squares
test_poisson: prefill and decode not told apart, 98 % of the steps' energy being in mixed steps: all steps look alike
~ estimated: the phases were marked from outside the engine
"""


def test_phases_say_how_they_were_found_or_why_not(pytestconfig: pytest.Config) -> None:
    text = shown(
        pytestconfig,
        [
            measured("test_pure"),
            measured("test_server", estimated=True),
            measured("test_chunked", split=PhaseSplit(0.36, 2.1)),
            measured("test_poisson", prefill=None, split=PhaseSplit(0.9812, reason="all steps look alike")),
        ],
    )
    assert text == PHASES.strip("\n")


def stored(*watts: float, prefill: float | None = 0.1) -> ComparableRuns:
    runs = tuple(measured(watts=each, prefill=prefill) for each in watts)
    return ComparableRuns("main@1a2b3c4", runs, tuple(map(str, watts)), history="")


THREE = stored(500, 501, 499)

NEXT = (
    "  Next: tokenpower history tests/test_energy.py::test_chat\n"
    "  Intended? tokenpower accept tests/test_energy.py::test_chat --up-to {}% --reason ..."
)

MESSAGES = {
    "slower": (
        measured(seconds=10.7),
        THREE,
        "regressed",
        """
REGRESSED +7.0 % (limit 3 %): test_it takes 267.4 mJ/token; main@1a2b3c4 took 249.9 (3 runs).
  +7.0 % [+5.9, +8.1] (95 % interval), one-sided p = 0.00058.
  decode +7.1 %, prefill +0.0 %; power 500 W (+0.0 %), 1869 tok/s (-6.5 %): slower, not hotter.
"""
        + NEXT.format(10),
    ),
    "hotter": (
        measured(watts=535),
        THREE,
        "regressed",
        """
REGRESSED +7.0 % (limit 3 %): test_it takes 267.4 mJ/token; main@1a2b3c4 took 249.9 (3 runs).
  +7.0 % [+5.9, +8.1] (95 % interval), one-sided p = 0.00058.
  decode +7.0 %, prefill +7.0 %; power 535 W (+7.0 %), 2000 tok/s (+0.0 %): hotter, not slower.
"""
        + NEXT.format(10),
    ),
    "both": (
        measured(watts=515, seconds=10.4),
        THREE,
        "regressed",
        """
REGRESSED +7.1 % (limit 3 %): test_it takes 267.7 mJ/token; main@1a2b3c4 took 249.9 (3 runs).
  +7.1 % [+6.1, +8.2] (95 % interval), one-sided p = 0.00056.
  decode +7.2 %, prefill +3.0 %; power 515 W (+3.0 %), 1923 tok/s (-3.8 %): hotter and slower.
"""
        + NEXT.format(10),
    ),
    "improved": (
        measured(watts=400),
        THREE,
        "improved",
        """
improved -20.0 % (limit 3 %): test_it takes 199.9 mJ/token; main@1a2b3c4 took 249.9 (3 runs).
  -20.0 % [-20.8, -19.2] (95 % interval).
  decode -20.0 %, prefill -20.0 %; power 400 W (-20.0 %), 2000 tok/s (+0.0 %): cooler, not faster.
""",
    ),
    "unchanged": (
        measured(),
        THREE,
        "passed",
        """
passed +0.0 % (limit 3 %): test_it takes 249.9 mJ/token; main@1a2b3c4 took 249.9 (3 runs).
  +0.0 % [-1.0, +1.0] (95 % interval).
  decode +0.0 %, prefill +0.0 %; power 500 W (+0.0 %), 2000 tok/s (+0.0 %): no change.
""",
    ),
    "one run": (
        measured(seconds=10.7),
        stored(500),
        "regressed",
        """
REGRESSED +7.0 % (limit 3 %): test_it takes 267.4 mJ/token; main@1a2b3c4 took 249.9 (1 run).
  +7.0 % [+1.2, +13.1] (95 % interval), one-sided p = 0.0084.
  decode +7.1 %, prefill +0.0 %; power 500 W (+0.0 %), 1869 tok/s (-6.5 %): neither is shown to be the cause.
  The limit is below the noise: rises under 6.8 % cannot be told.
  Provisional: fewer than three occasions of this test are stored, so that its own noise is not known.
"""
        + NEXT.format(12),
    ),
    "noisy": (
        measured(seconds=10.7, prefill=None),
        stored(500, 550, 455, prefill=None),
        "inconclusive",
        """
inconclusive +7.0 % (limit 3 %): test_it takes 267.4 mJ/token; main@1a2b3c4 took 250.0 (3 runs).
  +7.0 % [-33.2, +71.3] (95 % interval), one-sided p = 0.3.
  power 500 W (+0.0 %), 1869 tok/s (-6.5 %): slower, not hotter.
  Not decided: a rise of J/token fails here from 114 % on, and 135 % is found in four of five cases; more stored """
        """occasions, restarts (--energy-max-seconds) or energy.compare tell smaller ones.
""",
    ),
    "none": (
        measured(),
        ComparableRuns("main@1a2b3c4", (), (), "no run is stored in /store"),
        "no baseline",
        "no baseline: test_it: nothing to compare with on main@1a2b3c4: no run is stored in /store",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_the_message_of_a_comparison(case: str) -> None:
    measurement, runs, kind, message = MESSAGES[case]
    verdict = judge_stored(measurement, runs, 0.03)
    assert verdict.kind == kind
    assert text(verdict) == message.strip("\n")


@pytest.mark.parametrize(
    ("watts", "seconds", "cause"),
    [
        (530, 10.1, "hotter, not slower"),  # 85 % of the change
        (505, 10.6, "slower, not hotter"),
        (520, 10.2, "hotter and slower"),  # 66 %
        (470, 9.9, "cooler, not faster"),
        (495, 9.4, "faster, not cooler"),
    ],
)
def test_what_carries_four_fifths_of_a_change_is_its_cause(watts: float, seconds: float, cause: str) -> None:
    assert f": {cause}." in text(judge_stored(measured(watts=watts, seconds=seconds), THREE, 0.03))


def test_the_messages_of_absolute_limits() -> None:
    limits = {
        "joules_per_token": 0.2,
        "joules_per_response": 130.0,
        "joules": 5000.0,
        "mean_watts": 600.0,
        "peak_watts": 600.0,
    }
    assert [text(verdict) for verdict in judge_ceilings(measured(), limits, Policy(0.03))] == [
        "OVER BUDGET 249.9 mJ/token (limit 200): test_it: joules_per_token exceeds its budget "
        "(95 % interval 240.3 to 259.9).",
        "passed 125.0 J/response (limit 130): test_it: joules_per_response stays within its budget "
        "(95 % interval 120.2 to 130.0).",
        "inconclusive 4999 J / execution of the workload (limit 5000): test_it: joules cannot be told from its budget "
        "(95 % interval 4807 to 5199).",
        "passed 499.9 W (limit 600): test_it: mean_watts stays within its budget "
        "(95 % interval 480.7 to 519.9).",
        "OVER BUDGET 650 W (limit 600): test_it: peak_watts exceeds its budget.",
    ]


def test_at_80_columns_the_least_needed_columns_go_and_no_line_of_the_table_is_wider(
    pytestconfig: pytest.Config,
) -> None:
    tests = [
        measured("test_chat[bf16]", verdicts=[compared("passed", 0.003, "…")]),
        measured("test_eager", seconds=13, verdicts=[compared("regressed", 0.31, "…")]),
    ]
    wide, narrow = (shown(pytestconfig, tests, width=width).splitlines() for width in (120, 80))
    [head] = [line for line in narrow if line.startswith("test ")]
    assert head.split() == [
        "test",
        "mJ/token",
        "prefill",
        "decode",
        "change",
        "95",
        "%",
        "interval",
        "verdict",
    ]
    assert any("tok/s" in line for line in wide)
    at = narrow.index(head)
    assert max(map(len, narrow[at : at + 4])) <= 80


def test_variants_that_could_not_be_measured_have_no_interval() -> None:
    verdict = VerdictRecord(
        "invalid", OTHER_VARIANT, reason="3 of 4 ABBA blocks could not be measured: thermal"
    )
    lines = [line for line, _ in table([measured(verdicts=(verdict,))], Layout(), 200)]
    assert "interval" not in lines[0]
    assert "+0.0" not in lines[2]


def test_columns_order_and_groups_are_as_asked_for(pytestconfig: pytest.Config) -> None:
    tests = [
        measured("test_b[fp8]", watts=350),
        measured("test_a[bf16]"),
        measured("test_a[fp8]", watts=600),
    ]

    def table(**asked: str) -> list[str]:
        options = {
            "columns": "test,joules-per-response,peak_watts",
            "sort": "run",
            "group_by": "none",
        } | asked
        return shown(pytestconfig, tests, layout=layout(**options), width=40).splitlines()[3:]

    assert table() == [
        "test          J/response  peak_watts",
        "------------------------------------",
        "test_b[fp8]        87.48         650",
        "test_a[bf16]       125.0         650",
        "test_a[fp8]        150.0         650",
    ]
    assert [line.split()[0] for line in table(sort="name")[2:]] == [
        "test_a[bf16]",
        "test_a[fp8]",
        "test_b[fp8]",
    ]
    assert [line.split()[0] for line in table(sort="joules_per_token")[2:]] == [
        "test_a[fp8]",
        "test_a[bf16]",
        "test_b[fp8]",
    ]
    assert [line.split()[0] for line in table(group_by="param")[2:]] == [
        "fp8:",
        "test_b[fp8]",
        "test_a[fp8]",
        "bf16:",
        "test_a[bf16]",
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("joules,watt", "run", "none"), "no column watt: valid are"),
        (("", "size", "none"), "--energy-sort=size: must be one of run, name"),
        (("", "run", "colour"), "--energy-group-by=colour: must be one of none, file"),
    ],
)
def test_an_unknown_column_order_or_group_is_named_with_the_valid_ones(
    asked: tuple[str, str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        layout(*asked)


@pytest.mark.parametrize("width", [10, 20, 30])
def test_in_a_narrow_terminal_the_gravest_news_is_said(pytestconfig: pytest.Config, width: int) -> None:
    tests = [measured("test_a", verdicts=(compared("regressed", 0.1),)), measured("test_b")]
    assert "1 REGRESSED" in shown(pytestconfig, tests, width=width, verbosity=-2)
    assert "1 REGRESSED" in shown(pytestconfig, tests[:1], width=width, verbosity=-2)


def test_under_qq_the_news_is_one_line_and_what_is_not_measured_is_still_said(
    pytestconfig: pytest.Config,
) -> None:
    tests = [measured("test_a"), measured("test_b", provenance="simulated")]
    assert shown(pytestconfig, tests, width=80, verbosity=-2).splitlines()[1:] == [
        "SIMULATED, not measured: 1x NVIDIA H100 80GB HBM3, power ring (gpu energy)"
    ]
    assert len(shown(pytestconfig, tests[:1], width=80, verbosity=-2).splitlines()) == 1


@pytest.mark.parametrize(
    ("joules", "unit", "shown"),
    [
        (2e-5, "µJ", "20"),
        (0.1567, "mJ", "156.7"),
        (0.9996, "mJ", "999.6"),
        (1.0, "J", "1"),
        (7.2e4, "Wh", "20"),
    ],
)
def test_energy_is_shown_in_a_unit_that_is_easy_to_read(joules: float, unit: str, shown: str) -> None:
    found = energy_unit(joules)
    assert (found.name, f"{joules / found.joules:.4g}") == (unit, shown)


def test_a_test_has_one_unit_in_its_row_and_its_message_whatever_stands_beside_it(
    pytestconfig: pytest.Config,
) -> None:
    fell = msgspec.structs.replace(compared("improved", -0.5), value=0.8, baseline_value=1.6)
    small = measured("test_small", watts=1600, verdicts=[fell])
    beside = shown(pytestconfig, [small, measured("test_large", watts=3000)]).splitlines()
    rows = {line.split()[0]: line.split() for line in beside if line.startswith("test_")}
    assert "per token" in next(line for line in beside if line.startswith("test "))
    assert rows["test_small"][1:3] == ["799.8", "mJ"]
    assert rows["test_large"][1:3] == ["1.500", "J"]
    [message] = [line for line in beside if line.startswith("improved")]
    assert "takes 800.0 mJ/token; main@1a2b3c4 took 1600 (3 runs)." in message
    alone = shown(pytestconfig, [small]).splitlines()
    assert "mJ/token" in next(line for line in alone if line.startswith("test "))
    assert next(line for line in alone if line.startswith("test_small")).split()[1] == "799.8"
