"""`tokenpower analyse`, --energy-record and --energy-source=replay: real telemetry, and what is wrong with others'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_tokenpower.cli import main
from pytest_tokenpower.meters.recording import read_recording
from pytest_tokenpower.store.keys import VARY
from tests.support.projects import ALONE, Project

RECORDINGS = Path(__file__).parents[1] / "data/recordings"

EXAMPLE = """\
{"type": "recording", "version": 1}
{"type": "power", "device": "GPU-1", "t_us": 1000000, "mw": 300000}
{"type": "counter", "device": "GPU-1", "t0_us": 1000000, "t1_us": 1003000, "mj": 50000}
{"type": "window", "name": "w", "phase": null, "start_us": 1500000, "end_us": 2500000, \
"prompt_tokens": 100, "generated_tokens": 10}
"""


def analyse(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert main(["analyse", str(path), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def recording(path: Path, *rows: dict[str, Any]) -> Path:
    head = {"type": "recording", "version": 1}
    path.write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))
    return path


def board(
    device: str, watts: float, *, ring: bool = True, counter: bool = True, seconds: int = 8
) -> list[dict[str, Any]]:
    """Steady power, of which the counter says the same."""
    rows: list[dict[str, Any]] = []
    if ring:
        rows += [
            {"type": "power", "device": device, "t_us": 20_000 * n, "mw": round(watts * 1000)}
            for n in range(1, 50 * seconds + 1)
        ]
    if counter:
        rows += [
            {
                "type": "counter",
                "device": device,
                "t0_us": 10**6 * n,
                "t1_us": 10**6 * n,
                "mj": round(watts * 1000 * n),
            }
            for n in range(1, seconds)
        ]
    return rows


def window(start_s: float, end_s: float, phase: str | None = None, **fields: Any) -> dict[str, Any]:
    edges = {"start_us": round(start_s * 1e6), "end_us": round(end_s * 1e6)}
    return {
        "type": "window",
        "name": "w",
        "phase": phase,
        "prompt_tokens": 100,
        "generated_tokens": 10,
        **edges,
        **fields,
    }


# --- real telemetry (cut from recordings of an H100: plain PyTorch, and vLLM)


@pytest.mark.parametrize(
    ("name", "count", "joules", "spread"),
    [
        # Three kinds of prefill: 82, 228 and 380 ms; the spread of single windows is at most the project's goal.
        ("h100_plain_1b", 64, 61.2, 0.04),
        ("h100_plain_8b", 28, 173.2, 0.015),
        ("h100_vllm_8b", 6, 287.0, 0.012),
    ],
)
def test_prefills_of_an_h100(
    capsys: pytest.CaptureFixture[str], name: str, count: int, joules: float, spread: float
) -> None:
    result = analyse(capsys, RECORDINGS / f"{name}.jsonl.gz")
    assert result["scale"] == pytest.approx(1, abs=0.003)
    prefills = [each for each in result["windows"] if each["phase"] == "prefill"]
    assert len(prefills) == count
    assert all(each["valid"] and each["reasons"] == [] for each in prefills)
    read = np.array([each["joules"] for each in prefills])
    errors = np.array([each["stderr"] for each in prefills])
    assert read.mean() == pytest.approx(joules, rel=0.005)
    assert read.std(ddof=1) <= spread * read.mean()
    # The stated 95 % intervals hold the median of all as often as they say, and are not wide for nothing.
    held = np.mean(np.abs(read - np.median(read)) <= 1.96 * errors)
    assert held >= 0.8
    assert np.median(errors) <= 1.5 * spread * read.mean()


def test_rounds_and_phases_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    windows = analyse(capsys, RECORDINGS / "h100_vllm_8b.jsonl.gz")["windows"]
    for whole, prefill, decode in zip(windows[::3], windows[1::3], windows[2::3], strict=True):
        assert (whole["phase"], prefill["phase"], decode["phase"]) == (None, "prefill", "decode")
        assert prefill["joules"] + decode["joules"] == pytest.approx(whole["joules"], abs=1e-6)
        assert whole["joules"] == pytest.approx(1348, rel=0.01)
        assert whole["joules_per_token"] == pytest.approx(whole["joules"] / (32 * 256))
        assert prefill["joules_per_token"] == pytest.approx(prefill["joules"] / (32 * 512))
        assert whole["watts"] == pytest.approx(whole["joules"] / whole["seconds"])
        assert whole["stderr"] < 0.005 * whole["joules"]


def test_a_decode_that_the_ring_cannot_resolve_is_invalid(capsys: pytest.CaptureFixture[str]) -> None:
    windows = analyse(capsys, RECORDINGS / "h100_plain_1b.jsonl.gz")["windows"]
    short = [each for each in windows if each["phase"] == "decode" and each["seconds"] < 0.03]
    assert len(short) >= 5
    for each in short:
        assert not each["valid"]
        assert "too short for the power ring" in each["reasons"][0]


# --- what others write


def test_the_format_of_the_issue_verbatim(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "example.jsonl"
    path.write_text(EXAMPLE)
    result = analyse(capsys, path)
    assert result["scale"] is None
    [one] = result["windows"]
    assert {
        "name",
        "phase",
        "joules",
        "stderr",
        "watts",
        "joules_per_token",
        "valid",
        "reasons",
    } <= one.keys()
    # A single sample and a single reading span no time.
    assert (one["name"], one["phase"], one["joules"], one["valid"]) == ("w", None, None, False)
    assert one["reasons"] == ["GPU-1: the meter recording gave no readings"]


def test_steady_power(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = recording(
        tmp_path / "r", *board("GPU-1", 300), window(4, 5), window(1, 3, "prefill"), window(3, 4, "decode")
    )
    result = analyse(capsys, path)
    assert result["scale"] == pytest.approx(1)
    whole, prefill, decode = result["windows"]
    assert (whole["joules"], whole["watts"], whole["joules_per_token"]) == pytest.approx((300, 300, 30))
    assert (prefill["joules"], prefill["watts"], prefill["joules_per_token"]) == pytest.approx((600, 300, 6))
    assert (decode["joules"], decode["joules_per_token"]) == pytest.approx((300, 30))
    assert all(each["valid"] for each in result["windows"])


def test_the_scale_is_the_counters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = board("GPU-1", 300, seconds=60)
    for row in rows:
        if row["type"] == "counter":
            row["mj"] = round(row["mj"] * 1.02)
    result = analyse(capsys, recording(tmp_path / "r", *rows, window(10, 20)))
    assert result["scale"] == pytest.approx(1.02, abs=1e-3)
    assert result["windows"][0]["joules"] == pytest.approx(3000 * result["scale"])


def test_several_devices_are_summed_and_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [*board("GPU-1", 300), *board("GPU-2", 500)]
    path = recording(tmp_path / "r", *rows, window(2, 4), window(2, 4, devices=["GPU-2"]))
    result = analyse(capsys, path)
    both, second = result["windows"]
    assert both["joules"] == pytest.approx(1600)
    assert both["devices"] == pytest.approx({"GPU-1": 600, "GPU-2": 1000})
    assert second["joules"] == pytest.approx(1000)
    assert second["devices"].keys() == {"GPU-2"}
    assert result["devices"].keys() == {"GPU-1", "GPU-2"}


def test_without_a_ring_the_counter_says_what_it_can(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = board("GPU-1", 300, ring=False, seconds=40)
    result = analyse(capsys, recording(tmp_path / "r", *rows, window(5, 35), window(5, 5.2)))
    long, short = result["windows"]
    assert result["scale"] is None
    assert result["devices"]["GPU-1"]["method"] == "energy counter"
    assert long["valid"]
    assert long["joules"] == pytest.approx(9000, rel=0.01)
    assert not short["valid"]
    assert "is shorter than the energy counter can tell apart" in short["reasons"][0]


@pytest.mark.parametrize(
    ("rows", "where", "reason"),
    [
        (board("GPU-1", 300), (7.5, 9), "no readings over the whole window"),
        (board("GPU-1", 300), (20, 21), "no readings over the whole window"),
        (board("GPU-1", 300), (0, 0.5), "no readings over the whole window"),
        (board("GPU-1", 300), (3, 3), "the window does not end after it starts"),
        (board("GPU-1", 300), (3, 2), "the window does not end after it starts"),
        (board("GPU-1", 300, counter=False), (2, 3), "has no energy counter to check the power ring against"),
        (
            [r for r in board("GPU-1", 300) if not 2e6 < r.get("t_us", 0) < 2.3e6],
            (1.5, 3),
            "readings are missing",
        ),
        (board("GPU-1", 0), (2, 3), "read 0 J"),
        ([{"type": "device", "id": "GPU-1"}], (2, 3), "gave no readings"),
        ([], (2, 3), "there are no readings of any device"),
    ],
    ids=[
        "end",
        "outside",
        "start",
        "empty",
        "backwards",
        "no counter",
        "gap",
        "dead",
        "nothing",
        "no device",
    ],
)
def test_what_cannot_be_trusted_is_invalid_and_says_why(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rows: list[dict[str, Any]],
    where: tuple[float, float],
    reason: str,
) -> None:
    [one] = analyse(capsys, recording(tmp_path / "r", *rows, window(*where)))["windows"]
    assert not one["valid"]
    assert any(reason in each for each in one["reasons"])
    assert one["joules"] != 0 or reason == "read 0 J"


def test_a_malformed_line_is_an_error_with_its_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(EXAMPLE + '{"type": "power", "device": "GPU-1"}\n')
    assert main(["analyse", str(path)]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        f"tokenpower analyse: {path}, line 5: malformed row: Object missing required field `t_us`\n"
    )


def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = recording(
        tmp_path / "r", *board("GPU-1", 300), window(2, 4), window(2, 3, "prefill"), window(9, 10)
    )
    assert main(["analyse", str(path)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("GPU-1: GPU-1, power ring × 1.0000 ± ")
    assert lines[5].split()[:3] == ["w", "2", "600"]
    assert lines[5].split()[4:] == ["300", "60"]
    assert lines[6].split()[:4] == ["w", "prefill", "1", "300"]
    assert lines[7].endswith(
        "INVALID: GPU-1: no readings over the whole window (the meter stopped or started late)"
    )
    assert lines[-1] == "J/token: per generated token; of a prefill, per prompt token."


def test_a_recording_without_windows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = recording(tmp_path / "r", *board("GPU-1", 300))
    assert main(["analyse", str(path)]) == 0
    assert "The recording has no windows." in capsys.readouterr().out
    assert analyse(capsys, path)["windows"] == []


def test_the_command_line(tmp_path: Path) -> None:
    path = recording(tmp_path / "r", *board("GPU-1", 300), window(2, 4))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest_tokenpower", "analyse", str(path), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout)["windows"][0]["joules"] == pytest.approx(600)


def step(start_s: float, end_s: float, prompt: int, generated: int) -> dict[str, Any]:
    phase = "mixed" if prompt and generated else "prefill" if prompt else "decode"
    return window(start_s, end_s, phase, prompt_tokens=prompt, generated_tokens=generated)


def steps_of(start_s: float) -> list[dict[str, Any]]:
    """Return a round of 1 s as an engine records it: two prefill steps of 100 ms, then eight decode steps of 90 ms."""
    prefills = [step(start_s + 0.1 * n, start_s + 0.1 * (n + 1), 50, 0) for n in range(2)]
    decodes = [step(start_s + 0.2 + 0.1 * n, start_s + 0.29 + 0.1 * n, 0, 1) for n in range(8)]
    return [*prefills, *decodes]


def test_the_steps_of_a_round_are_its_phases_to_people_and_windows_to_programs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = board("GPU-1", 300)
    for start_s in (2.0, 4.0):
        rows += [window(start_s, start_s + 1), *steps_of(start_s)]
    # A phase in no round, and one of a round that has only one of its kind, stay as they are.
    rows += [window(6.1, 6.3, "decode"), window(5, 6), window(5, 5.5, "prefill")]
    path = recording(tmp_path / "r", *rows)
    result = analyse(capsys, path)
    assert len(result["windows"]) == 2 * 11 + 3
    assert [each["phase"] for each in result["windows"][:4]] == [None, "prefill", "prefill", "decode"]

    assert main(["analyse", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[5:]]
    whole, prefill, decode, between, second, *rest = lines
    assert (whole[:3], whole[4:]) == (["w", "1", "300"], ["300", "30"])
    assert (prefill[:6], prefill[7:]) == (["w", "prefill", "(2", "steps)", "0.2", "60"], ["300", "0.6"])
    assert (decode[:6], decode[7:]) == (["w", "decode", "(8", "steps)", "0.72", "216"], ["300", "21.6"])
    assert between[:5] == ["w", "between", "steps", "0.07", "21"]
    assert second[:3] == ["w", "1", "300"]
    assert [line[:2] for line in rest[3:6]] == [["w", "decode"], ["w", "1"], ["w", "prefill"]]


def test_mixed_steps_that_cannot_be_split_say_so_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mixed = [step(2 + 0.1 * n, 2.1 + 0.1 * n, 10, 5) for n in range(10)]
    path = recording(tmp_path / "r", *board("GPU-1", 300), window(2, 3), *mixed)
    assert main(["analyse", str(path)]) == 0
    [whole, told] = [line.rstrip() for line in capsys.readouterr().out.splitlines()[5:]]
    assert whole.split()[:3] == ["w", "1", "300"]
    assert told.split()[:4] == ["w", "10", "steps", "-"]
    assert "INVALID: " in told


def test_the_phases_of_a_round_that_cannot_be_trusted_are_not_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = recording(tmp_path / "r", *board("GPU-1", 300), window(7.5, 8.5), *steps_of(7.5))
    assert main(["analyse", str(path)]) == 0
    [whole, told] = capsys.readouterr().out.splitlines()[5:]
    assert "no readings over the whole window" in whole
    assert "the phases of an invalid round are not told" in told


def test_a_window_of_no_device_is_invalid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = recording(tmp_path / "r", *board("GPU-1", 300), window(2, 3, devices=[]))
    [one] = analyse(capsys, path)["windows"]
    assert (one["joules"], one["stderr"], one["valid"]) == (None, None, False)
    assert one["reasons"] == ["there are no readings of any device"]


# --- recorded and replayed by pytest


TESTS = """
@quick
def test_chat(energy):
    assert energy(generate, 0.05, 7, 1000).prompt == 7

def test_block(energy):
    for _ in range(2):
        with energy.measure() as window:
            window.count(generate(0.2))

@quick
def test_wrong(energy):
    energy(generate)
    assert False, "by itself"
"""


def test_a_run_is_recorded_and_replayed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.tests(TESTS)
    ran, live = project.measure("--energy-record=run.jsonl")
    ran.assert_outcomes(passed=2, failed=1)

    path = project.path / "run.jsonl"
    capsys.readouterr()
    assert [(each.name, each.repeats) for each in read_recording(path).windows[:2]] == [
        ("test_energy.py::test_chat", live.measurements[0].rounds[0].repeats)
    ] * 2
    result = analyse(capsys, path)
    rounds = [one for measured in live.measurements for one in measured.rounds]
    assert [each["joules"] for each in result["windows"]] == pytest.approx(
        [one.joules for one in rounds], rel=0.01
    )

    again, replayed = project.measure("--energy-source=replay:run.jsonl")
    again.assert_outcomes(passed=2, failed=1)
    again.stdout.fnmatch_lines(["*REPLAYED, not measured: *"])
    for before, after in zip(live.measurements, replayed.measurements, strict=True):
        assert (after.test, after.provenance, after.comparable) == (
            before.test,
            "replayed",
            before.comparable,
        )
        assert after.key["gpu.recorded_as"] == "simulated"
        assert after.key["generated_tokens"] == before.key["generated_tokens"]
        assert [one.generated_tokens for one in after.rounds] == [
            one.generated_tokens for one in before.rounds
        ]
        assert [one.joules for one in after.rounds] == pytest.approx(
            [one.joules for one in before.rounds], rel=0.01
        )


def test_a_replay_knows_that_the_work_varied_within_a_round(project: Project) -> None:
    project.tests(
        """
from itertools import cycle

@quick
def test_chat(energy):
    lengths = cycle([100, 300])
    energy(lambda: generate(0.02, generated=next(lengths)))
"""
    )
    _, live = project.measure("--energy-record=run.jsonl")
    _, replayed = project.measure("--energy-source=replay:run.jsonl")
    for run in (live, replayed):
        [measured] = run.measurements
        assert measured.key["generated_tokens"] == VARY
        assert measured.facts["token_counts"] == "differ between executions"


RUN_ON_ENGINE = """
from pytest_tokenpower.workloads.base import Batch
from pytest_tokenpower.engines.protocol import EngineIdentity, Generation


class Engine:
    identity = EngineIdentity("stub", "1.0", "m")
    device_ids = ("GPU-two",)

    def generate(self, batch):
        sleep(0.05)
        return Generation([[1] * batch.new_tokens for _ in batch.prompts], batch.tokens)

    def close(self):
        pass


@quick
def test_engine(energy):
    energy.run(Engine(), Batch([[1, 2]], 4))
"""


def test_a_recording_names_the_gpus_that_the_engine_ran_on(project: Project) -> None:
    boards = {"boards": [{"uuid": "GPU-one"}, {"uuid": "GPU-two"}], "clock": "virtual"}
    project.file("two.json", json.dumps(boards))
    project.tests(RUN_ON_ENGINE)
    _, live = project.measure("--energy-source=simulated:two.json", "--energy-record=run.jsonl")
    [measured] = live.measurements
    assert measured.rounds[0].device_joules.keys() == {"GPU-two"}
    windows = read_recording(project.path / "run.jsonl").windows
    assert windows
    assert {window.devices for window in windows} == {("GPU-two",)}
    # Both are in the recording, and a replay by something that names no GPU is of the one that was measured.
    project.tests("def test_engine(energy):\n    energy(generate)\n")
    _, replayed = project.measure("--energy-source=replay:run.jsonl")
    assert replayed.measurements[0].rounds[0].device_joules.keys() == {"GPU-two"}


def test_a_replay_calls_the_workload_once_and_has_its_verdicts(project: Project) -> None:
    project.tests(
        """
@quick
def test_chat(energy):
    calls = []
    energy(lambda: calls.append(1) or generate(0.05))
    assert len(calls) == 1 or not REPLAYED

@quick
@pytest.mark.power_budget(joules_per_token=1e-6)
def test_costly(energy):
    energy(generate, 0.05)
""".replace("REPLAYED", "__import__('os').environ.get('REPLAYED')")
    )
    project.run("--energy-record=run.jsonl")
    project.pytester._monkeypatch.setenv("REPLAYED", "1")
    ran = project.run("--energy-source=replay:run.jsonl")
    ran.assert_outcomes(passed=1, failed=1)
    ran.stdout.fnmatch_lines(["OVER BUDGET * test_costly*"])


def test_a_test_that_the_recording_does_not_have_fails(project: Project) -> None:
    project.tests("@quick\ndef test_one(energy):\n    energy(generate, 0.05)\n")
    project.run("--energy-record=run.jsonl")
    project.tests(
        "def test_two(energy):\n    energy(generate)\n\n"
        "def test_one(energy):\n"
        "    for _ in range(3):\n"
        "        with energy.measure():\n"
        "            pass\n"
    )
    ran = project.run("--energy-source=replay:run.jsonl")
    ran.stdout.fnmatch_lines(
        [
            "*run.jsonl has no window of test_energy.py::test_two: *; recorded are test_energy.py::test_one*",
            "*the recording has 2 windows of this test, and energy.measure() was entered once more*",
        ]
    )
    assert ran.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--energy-source=replay:gone.jsonl"],
            "gone.jsonl: this recording cannot be read: No such file or directory",
        ),
        (["--energy-source=replay:"], "name a recording: --energy-source=replay:PATH"),
        (["--energy-record=gone/run.jsonl"], "must be a file in a folder that exists and can be written to"),
        (["--energy-record=."], "must be a file in a folder that exists and can be written to"),
    ],
)
def test_mistakes_stop_the_run_before_any_test(project: Project, arguments: list[str], message: str) -> None:
    project.tests("def test_it(energy):\n    energy(generate)\n")
    ran = project.run(*arguments)
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"*{message}*"])
    ran.stdout.no_fnmatch_line("*passed*")


def test_a_replay_is_not_recorded(project: Project) -> None:
    recording(project.path / "run.jsonl", *board("GPU-1", 300))
    ran = project.run("--energy-source=replay:run.jsonl", "--energy-record=again.jsonl")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["*--energy-record: a replay measures nothing that could be recorded*"])


def test_no_energy_test_no_recording(project: Project) -> None:
    project.tests("def test_plain():\n    pass\n")
    assert project.run("--energy-record=run.jsonl").ret == 0
    assert not (project.path / "run.jsonl").exists()


def test_a_recording_that_is_lost_in_the_end_fails_the_run(project: Project) -> None:
    project.tests(
        "def test_it(energy):\n"
        "    import os\n"
        "    with energy.measure() as window:\n"
        "        window.count(generate(0.2))\n"
        "    os.mkdir('run.jsonl')\n"
    )
    ran = project.run("--energy-record=run.jsonl")
    assert ran.ret == pytest.ExitCode.INTERNAL_ERROR
    ran.stdout.fnmatch_lines(["*this run is NOT recorded in *run.jsonl: *cannot be written*", "*1 passed*"])


def test_each_worker_records_its_own_timeline(project: Project) -> None:
    pytest.importorskip("xdist")
    project.tests(
        "@quick\n@pytest.mark.parametrize('n', range(4))\ndef test_it(energy, n):\n    energy(generate, 0.2)\n"
    )
    ran = project.run(*ALONE, "-n2", "--energy-record=run.jsonl.gz")
    ran.assert_outcomes(passed=4)
    names = [path.name for path in sorted(project.path.glob("run.*"))]
    assert names == ["run.gw0.jsonl.gz", "run.gw1.jsonl.gz"]
    windows = [window for name in names for window in read_recording(project.path / name).windows]
    assert sorted({window.name for window in windows}) == [f"test_energy.py::test_it[{n}]" for n in range(4)]
