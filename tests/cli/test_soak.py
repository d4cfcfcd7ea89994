"""`tokenpower soak` on virtual time: hours in seconds, drift, steps, interruption and resumption."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.reporting.suites import soak_lines
from pytest_tokenpower.suites.soak import MOST_STRETCHES, Stretch, read_soak, stretch_seconds, summarise
from tests.support.commands import Command

SUITE = '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\nbatch = {batch}\n'
SIMULATED = ("--source", "simulated", "--simulated-engines")
FILE = Path("soak-llama-3.1-8b-vllm-b32.jsonl")


@pytest.fixture(autouse=True)
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "one.energy.toml"
    path.write_text(SUITE.format(batch=32))
    return path


@pytest.mark.slow
def test_an_hour_is_soaked_in_stretches_and_summed_up(tokenpower: Command) -> None:
    ended = tokenpower("soak", "one.energy.toml", "--hours", "1", *SIMULATED, "--max-drift", "2%")
    assert ended.code == 0, ended.err
    begun, stretches, _ = read_soak(FILE.read_bytes())
    assert begun is not None
    assert begun.source == "simulated:virtual"
    assert 3600 <= stretches[-1].at_s + stretches[-1].round.seconds < 3600 + 60
    # Without a pause: a stretch begins where the one before it ends, but for the wait for its last reading.
    for before, after in pairwise(stretches):
        assert before.round.seconds <= after.at_s - before.at_s < before.round.seconds + 3
    assert "1 h of continuous work, --source simulated:virtual" in ended.out
    assert "drift of J/token from beginning to end: +0.0 % [" in ended.out
    assert "limit 2 %" in ended.out
    assert "no step of 1 % and more" in ended.out
    assert ended.out.count("\n0.") >= 11


@pytest.mark.slow
def test_an_interrupted_soak_goes_on_until_its_time_is_full(tokenpower: Command) -> None:
    assert tokenpower("soak", "one.energy.toml", "--hours", "0.2", *SIMULATED).code == 0
    whole = FILE.read_bytes()
    FILE.write_bytes(whole + whole[-100:-20])
    ended = tokenpower("soak", "one.energy.toml", "--hours", "0.5", "--resume", *SIMULATED)
    assert ended.code == 0, ended.err
    data = FILE.read_bytes()
    assert data.startswith(whole)
    _, stretches, size = read_soak(data)
    assert size == len(data)
    times = [each.at_s for each in stretches]
    assert times == sorted(times)
    assert 1800 <= times[-1] + stretches[-1].round.seconds < 1800 + 60


def test_mistakes_are_said(tokenpower: Command, suite: Path) -> None:
    assert "must be above 0" in tokenpower("soak", "one.energy.toml", "--hours", "0").err
    assert "--cell=x: a.py is no suite" in tokenpower("soak", "a.py::b", "--cell", "x").err
    assert "there is no soak to go on with" in tokenpower("soak", "one.energy.toml", "--resume").err
    assert tokenpower("soak", "one.energy.toml", "--hours", "0.01", *SIMULATED).code == 0
    assert "exists; --resume goes on with it" in tokenpower("soak", "one.energy.toml", *SIMULATED).err
    Path("x.json").write_text("{}")
    ended = tokenpower(
        "soak", "one.energy.toml", "--resume", "--source", "simulated:x.json", "--simulated-engines"
    )
    assert "is a soak of other work, of another commit, or with another" in ended.err
    assert (
        "what no engine does"
        in tokenpower("soak", "one.energy.toml", "--simulated-engines", "--out", "n.jsonl").err
    )
    suite.write_text(SUITE.format(batch=[1, 2]))
    ended = tokenpower("soak", "one.energy.toml")
    assert ended.code == 4
    assert (
        "name one of its cells with --cell; there are llama-3.1-8b-vllm-b1, llama-3.1-8b-vllm-b2" in ended.err
    )
    assert "--cell=x: there is no such cell" in tokenpower("soak", "one.energy.toml", "--cell", "x").err


TEST = """
import pytest
from pytest_tokenpower import TokenCount
from pytest_tokenpower.meters.simulation.virtual_time import VIRTUAL_TIME

def work():
    VIRTUAL_TIME.sleep(20)
    return TokenCount(0, 1000)

@pytest.mark.power_budget(min_rounds=2, max_rounds=2)
@pytest.mark.parametrize("batch", [1, 2])
def test_chat(energy, batch):
    energy(work)
"""


@pytest.mark.slow
def test_a_day_of_any_test_is_soaked_in_bounded_stretches(tokenpower: Command, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    asked = ("soak", "test_it.py::test_chat[1]", "--source", "simulated:virtual", "--out", "s.jsonl")
    ended = tokenpower(*asked, "--hours", "24", "--max-drift", "1%")
    assert ended.code == 0, ended.err
    begun, stretches, _ = read_soak(Path("s.jsonl").read_bytes())
    assert begun is not None
    assert begun.test == "test_it.py::test_chat[1]"
    assert len(stretches) <= MOST_STRETCHES
    assert stretches[-1].at_s + stretches[-1].round.seconds >= 24 * 3600
    assert "24 h of continuous work" in ended.out
    ended = tokenpower(*asked, "--resume", "--hours", "24")
    assert ended.code == 0, ended.err
    assert len(read_soak(Path("s.jsonl").read_bytes())[1]) == len(stretches)
    ended = tokenpower("soak", "test_it.py", "--source", "simulated:virtual", "--out", "t.jsonl")
    assert ended.code == 4
    assert "2 tests are selected, and a soak is of one" in ended.err


def stretch(at: int, joules: float, **more: object) -> Stretch:
    one = RoundRecord(at, 60.0, joules, 1.0, 100, 1000, temperature_celsius=50.0, sm_clock_mhz=1980.0)
    return Stretch(60.0 * at, replace(one, **more))


def wobble(at: int) -> float:
    return 1 + 0.002 * math.sin(37 * at)


def test_a_step_and_a_drift_are_found_where_they_are() -> None:
    stepped = summarise([stretch(at, 100.0 * wobble(at) * (1.05 if at >= 600 else 1)) for at in range(1440)])
    [(hour, step)] = stepped.steps
    assert hour == pytest.approx(10.0, abs=0.25)
    assert step.change == pytest.approx(0.05, abs=0.002)
    # Between two means: still one step.
    between = summarise([stretch(at, 100.0 * wobble(at) * (1.05 if at >= 607 else 1)) for at in range(1440)])
    [(hour, step)] = between.steps
    assert hour == pytest.approx(607 / 60, abs=0.5)
    assert step.change == pytest.approx(0.05, abs=0.004)
    drifting = summarise([stretch(at, 100.0 * wobble(at) * (1 + 0.03 * at / 1439)) for at in range(1440)])
    assert drifting.drift is not None
    low, high = drifting.drift.change.change_interval()
    assert low < 0.03 < high
    assert high - low < 0.003
    lines = soak_lines("c", "nvml", drifting, 0.02)
    assert lines[1].startswith("drift of J/token from beginning to end: +3.0 % [+2.")
    assert drifting.drift.change.p_above(0.02) < 0.05


def test_what_guards_dropped_and_limits_are_told_and_not_summed() -> None:
    bad = [stretch(at, 1e6, reasons=("x",), limited_shares={"thermal": 0.5}) for at in (3, 4)]
    good = [stretch(at, 100.0 * wobble(at), limited_shares={"power": 0.25}) for at in range(5, 60)]
    found = summarise([*bad, *good])
    assert found.dropped == 2
    assert max(part.joules_per_unit for part in found.parts) < 0.11
    text = "\n".join(soak_lines("c", "nvml", found, None))
    assert "2 stretches dropped by guards" in text
    assert "power limit" in text
    assert "25 %" in text


@pytest.mark.parametrize("hours", [0.1, 1, 24, 1000])
def test_there_are_never_more_than_so_many_stretches(hours: float) -> None:
    assert hours * 3600 / stretch_seconds(hours * 3600) <= MOST_STRETCHES


@pytest.mark.parametrize(("prompts", "unit"), [(10_000, "J/prompt token"), (0, "J/response")])
def test_work_that_generates_nothing_is_soaked_by_what_it_is_divided_by(prompts: int, unit: str) -> None:
    found = summarise(
        [
            stretch(at, 100.0 * wobble(at), prompt_tokens=prompts, generated_tokens=0, responses=10)
            for at in range(600)
        ]
    )
    assert found.unit == unit
    assert found.parts[0].joules_per_unit == pytest.approx(100.0 / (prompts or 10), rel=0.02)
    assert f"drift of {unit} from beginning to end: " in "\n".join(soak_lines("x", "simulated", found, None))
