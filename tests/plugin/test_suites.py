"""Suites as pytest collects and runs them, on the simulated board: selection, gates, resumption, several workers."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import RunRecord
from pytest_tokenpower.suites.resume import Finished, encode_line, read_journal
from tests.support.projects import Project

SUITE = """\
[axes]
model = "llama-3.1-8b"
engine = "vllm"
batch = [8, 64]

[variants]
bf16 = {}
fp8 = { quantization = "fp8" }

[limits]
min_rounds = 2
max_rounds = 2
"""

SIMULATED = ("--energy-simulated-engines",)
CELLS = {f"llama-3.1-8b-vllm-{variant}-b{batch}" for variant in ("bf16", "fp8") for batch in (8, 64)}


def write(project: Project, text: str = SUITE) -> Path:
    return project.file("suites/precision.energy.toml", text)


def cells(run: RunRecord) -> dict[str, float]:
    return {one.test.rpartition("::")[2]: one.figures["joules_per_token"].value for one in run.measurements}


def journal(project: Project) -> Path:
    [found] = (project.path / ".tokenpower" / "sweeps").glob("precision-????????.jsonl")
    return found


def test_the_grid_is_shown_with_what_it_takes_and_what_is_skipped(project: Project) -> None:
    write(project)
    result = project.run("--collect-only", "suites")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*<Suite precision.energy.toml: 4 cells, 4 will be skipped>",
            "*<Cell llama-3.1-8b-vllm-*: will be skipped, the engine vllm is not installed (no package vllm)>",
        ]
    )
    result = project.run("--collect-only", *SIMULATED)
    result.stdout.fnmatch_lines(
        [
            "*<Suite precision.energy.toml: 4 cells, about * on an H100, up to * GiB a board>",
            "*<Cell llama-3.1-8b-vllm-*: about * s, * GiB a board>",
        ]
    )


def test_cells_are_chosen_by_words_values_and_ids(project: Project) -> None:
    write(project)

    def chosen(*arguments: str) -> set[str]:
        lines = project.run("--collect-only", "-q", *arguments).stdout.lines
        return {line.rpartition("::")[2] for line in lines if "::" in line}

    assert chosen() == CELLS
    assert chosen("-k", "fp8 and b64") == {"llama-3.1-8b-vllm-fp8-b64"}
    assert chosen("-m", "energy_cell(batch=8, variant='bf16')") == {"llama-3.1-8b-vllm-bf16-b8"}
    assert chosen("-m", "energy_cell(quantization='fp8')") == {name for name in CELLS if "fp8" in name}
    name = "suites/precision.energy.toml::llama-3.1-8b-vllm-fp8-b8"
    assert chosen(name) == {"llama-3.1-8b-vllm-fp8-b8"}


def test_a_mistake_in_the_file_is_an_error_of_collection(project: Project) -> None:
    path = write(project, SUITE.replace("batch", "bach"))
    result = project.run(*SIMULATED)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{path.name}:4: axes.bach: there is no such field; valid are *"])
    assert "Traceback" not in result.stdout.str()


def test_what_cannot_run_here_is_skipped_with_the_reason(project: Project) -> None:
    write(project)
    result = project.run("-rs")
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["SKIPPED * the engine vllm is not installed (no package vllm)"])


def test_engines_are_only_simulated_on_the_simulated_board(project: Project) -> None:
    write(project)
    result = project.run("--energy-source=model", *SIMULATED)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*what no engine does cannot be measured*"])


def test_cells_are_measured_as_tests_and_say_what_they_are(project: Project) -> None:
    write(project)
    result, run = project.measure(*SIMULATED)
    result.assert_outcomes(passed=4)
    found = cells(run)
    assert set(found) == CELLS
    # A simulated board draws what it draws, so that joules follow the forecast's seconds.
    for batch in (8, 64):
        assert 0.3 < found[f"llama-3.1-8b-vllm-fp8-b{batch}"] / found[f"llama-3.1-8b-vllm-bf16-b{batch}"] < 1
    for one in run.measurements:
        assert one.provenance == "simulated"
        assert one.facts["suite.file"] == "suites/precision.energy.toml"
        assert one.facts["cell.batch"] in (8, 64)
        assert one.key.get("axis.quantization") == ("fp8" if "fp8" in one.test else None)
    assert sorted(one.facts["suite.place"] for one in run.measurements) == [0, 1, 2, 3]  # type: ignore[type-var]
    # Each engine's cells stand together.
    variants = [one.facts["cell.variant"] for one in run.measurements]
    assert variants in (["bf16", "bf16", "fp8", "fp8"], ["fp8", "fp8", "bf16", "bf16"])


def test_without_measuring_each_cell_runs_once(project: Project) -> None:
    write(project)
    project.run("--energy-disable", *SIMULATED).assert_outcomes(passed=4)


def test_gates_work_on_cells_as_on_tests(project: Project) -> None:
    write(project, SUITE + "regression = '5%'\n")
    store = f"--energy-storage={project.path / 'store'}"
    project.run(*SIMULATED, store, "--energy-save=before").assert_outcomes(passed=4)
    result = project.run(*SIMULATED, store, "--energy-baseline=before", "-k", "fp8")
    result.assert_outcomes(passed=2)
    assert "no baseline" not in result.stdout.str()
    ceiling = '[[budget]]\nwhere = { batch = 8, variant = "bf16" }\njoules_per_token = 1e-9\n'
    write(project, SUITE + ceiling)
    result = project.run(*SIMULATED, store)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*OVER BUDGET*llama-3.1-8b-vllm-bf16-b8*"])


def test_an_interrupted_sweep_goes_on_where_it_stopped(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8").assert_outcomes(passed=2)
    before = read_journal(journal(project).read_bytes())
    assert len(before.finished) == 2
    # Cut off in the middle of a line, as by a kill.
    whole = journal(project).read_bytes()
    journal(project).write_bytes(whole + whole[-200:-50])
    result, run = project.measure(*SIMULATED, "--energy-resume")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["suites/precision.energy.toml: 2 finished cells taken over from the sweep of *"]
    )
    after = read_journal(journal(project).read_bytes())
    assert after.good_bytes == journal(project).stat().st_size
    assert len(after.finished) == 4
    for test, finished in before.finished.items():
        assert after.finished[test] == finished
        [one] = (each for each in run.measurements if each.test == test)
        assert one.rounds == finished.measurement.rounds
    # Nothing is measured where all is finished, and the record is the same.
    _, again = project.measure(*SIMULATED, "--energy-resume")
    assert sorted(again.measurements, key=lambda one: one.test) == sorted(
        run.measurements, key=lambda one: one.test
    )


def test_a_cell_that_is_other_work_now_is_measured_anew(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    [old] = read_journal(journal(project).read_bytes()).finished.values()
    write(project, SUITE.replace("batch = ", "new_tokens = 64\nbatch = ").replace("new_tokens = 64\n", ""))
    write(project, SUITE + "[engines.vllm.options]\nseed = 1\n")
    project.run(*SIMULATED, "-k", "fp8-b8", "--energy-resume").assert_outcomes(passed=1)
    [new] = read_journal(journal(project).read_bytes()).finished.values()
    assert new.fingerprint != old.fingerprint


def test_a_cell_of_another_board_or_driver_is_measured_anew(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    [(test, old)] = read_journal(journal(project).read_bytes()).finished.items()
    begun, _ = journal(project).read_bytes().splitlines(keepends=True)
    measured = old.measurement
    for other in (
        replace(measured, key={**measured.key, "gpu.power_limit_watts": 350}),
        replace(measured, facts={**measured.facts, "GPU-x.driver": "1.2"}),
    ):
        journal(project).write_bytes(begun + encode_line(replace(old, measurement=other)))
        result = project.run(*SIMULATED, "-k", "fp8-b8", "--energy-resume")
        result.assert_outcomes(passed=1)
        result.stdout.no_fnmatch_line("*taken over*")
        assert read_journal(journal(project).read_bytes()).finished[test].measurement.key == measured.key


def test_a_journal_is_written_by_one_run_at_a_time(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    before = journal(project).read_bytes()
    with journal(project).with_suffix(".lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = project.run(*SIMULATED, "--energy-resume")
        result.assert_outcomes(errors=4)
        result.stdout.fnmatch_lines(["*another run is measuring this suite now: wait for its end*"])
        result = project.run(*SIMULATED)
        result.stdout.fnmatch_lines(
            ["*this sweep cannot be resumed: *another run is measuring this suite now*"]
        )
        assert journal(project).read_bytes() == before


def test_what_is_damaged_in_a_journal_is_told_and_kept(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8").assert_outcomes(passed=2)
    lines = journal(project).read_bytes().splitlines(keepends=True)
    for damaged, words in (
        ([lines[0], lines[1].replace(b"joules", b"Joules", 1), lines[2]], "*bytes after its last good line*"),
        ([b"no journal\n"], "*is damaged from its first line: measured anew*"),
    ):
        journal(project).write_bytes(b"".join(damaged))
        result = project.run(*SIMULATED, "-k", "fp8", "--energy-resume")
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines([words])
        assert journal(project).with_suffix(".previous.jsonl").read_bytes() == b"".join(damaged)
        assert len(read_journal(journal(project).read_bytes()).finished) == 2


def test_a_new_sweep_keeps_the_last_journal_aside(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    first = journal(project).read_bytes()
    project.run(*SIMULATED, "-k", "bf16-b8").assert_outcomes(passed=1)
    assert journal(project).with_suffix(".previous.jsonl").read_bytes() == first
    [test] = read_journal(journal(project).read_bytes()).finished
    assert "bf16" in test


INTERRUPTED = """
import os, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    if os.environ.get("INTERRUPT"):
        pytest.exit("stop", returncode=2)
"""


def test_a_sweep_that_is_interrupted_in_its_first_cell_is_resumed_as_itself(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project)
    project.run(*SIMULATED).assert_outcomes(passed=4)
    before = journal(project).read_bytes()
    project.file("conftest.py", INTERRUPTED)
    monkeypatch.setenv("INTERRUPT", "1")
    for _ in range(2):
        assert project.run(*SIMULATED).ret == pytest.ExitCode.INTERRUPTED
        assert read_journal(journal(project).read_bytes()).finished == {}
        # However often it begins anew, the last one with cells is kept.
        assert journal(project).with_suffix(".previous.jsonl").read_bytes() == before
    monkeypatch.delenv("INTERRUPT")
    result = project.run(*SIMULATED, "--energy-resume")
    result.assert_outcomes(passed=4)
    assert "taken over" not in result.stdout.str()


def test_a_sweep_with_another_source_is_not_gone_on_with(project: Project) -> None:
    write(project)
    scenario = project.file("board.json", json.dumps({"seed": 1}))
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    result = project.run(
        f"--energy-source=simulated:{scenario}", *SIMULATED, "--energy-resume", "-k", "fp8-b8"
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*was measured with --energy-source=simulated:virtual, and this run with simulated:*"]
    )


def test_limits_and_baselines_of_a_finished_cell_are_those_of_now(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    write(project, SUITE + "joules_per_token = 1e-9\n")
    result = project.run(*SIMULATED, "-k", "fp8-b8", "--energy-resume")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*OVER BUDGET*", "*1 finished cells taken over*"])


def test_a_measurement_that_is_not_to_be_trusted_is_not_finished(project: Project) -> None:
    write(project)
    fault = {"kind": "throttle", "limit": "thermal", "share": 1.0}
    scenario = project.file("hot.json", json.dumps({"faults": [fault]}))
    hot = f"--energy-source=simulated:{scenario}"
    project.run(hot, *SIMULATED, "-k", "fp8-b8").assert_outcomes(failed=1)
    assert not list((project.path / ".tokenpower" / "sweeps").glob("*"))


def test_workers_share_a_suite_and_one_journal(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8").assert_outcomes(passed=2)
    result = project.run(*SIMULATED, "-n2", "--energy-resume", "-p", "no:randomly")
    result.assert_outcomes(passed=4)
    assert len(read_journal(journal(project).read_bytes()).finished) == 4
    result.stdout.fnmatch_lines(["*2 finished cells taken over*"])


def test_several_runs_are_tests_of_their_own(project: Project) -> None:
    write(project, "[suite]\nruns = 2\n" + SUITE)
    result, run = project.measure(*SIMULATED, "-k", "b8")
    result.assert_outcomes(passed=4)
    assert set(cells(run)) == {f"llama-3.1-8b-vllm-{v}-b8{r}" for v in ("bf16", "fp8") for r in ("", "@run2")}
    order = [one.facts["cell.variant"] for one in run.measurements]
    assert order == order[::-1], "there and back"


BROKEN = """
def broken(model, **options):
    open("loads.txt", "a").write("x")
    raise RuntimeError("no such luck")
"""


def test_an_engine_that_does_not_load_is_tried_once(project: Project) -> None:
    project.file("broken_engine.py", BROKEN)
    project.file("conftest.py", "import sys\nsys.path.insert(0, '.')\n")
    engine = '[engines.e]\nadapter = "broken_engine:broken"\n'
    write(project, '[axes]\nmodel = "openai/anything"\nengine = "e"\nbatch = [1, 2]\n' + engine)
    result = project.run()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*no such luck*"])
    assert (project.path / "loads.txt").read_text() == "x"


def test_a_journal_line_of_a_hand_is_not_believed(project: Project) -> None:
    write(project)
    project.run(*SIMULATED, "-k", "fp8-b8").assert_outcomes(passed=1)
    found = read_journal(journal(project).read_bytes())
    [(test, finished)] = found.finished.items()
    line = encode_line(Finished("x", finished.measurement)).replace(
        b'"fingerprint":"x"', b'"fingerprint":"y"'
    )
    data = journal(project).read_bytes()
    assert read_journal(data + line) == found
    assert read_journal(data[:-1]).finished == {}
    assert test in found.finished


CLAIMS = """
[[claim]]
name = "FP8 saves"
of = { variant = "fp8" }
to = { variant = "bf16" }
at_most = 5
paper = "-30 %"

[[claim]]
name = "FP8 costs"
where = { batch = 8 }
of = { variant = "fp8" }
to = { variant = "bf16" }
at_least = 9
"""


def test_claims_are_judged_when_all_cells_are_measured(project: Project) -> None:
    write(project, SUITE + CLAIMS)
    result, run = project.measure(*SIMULATED)
    result.assert_outcomes(passed=4)
    assert {claim.name: claim.word for claim in run.claims} == {
        "FP8 saves [batch=8]": "confirmed",
        "FP8 saves [batch=64]": "confirmed",
        "FP8 costs": "refuted",
    }
    result.stdout.fnmatch_lines(
        [
            "FP8 saves [[]batch=64] *≤ 5 *0.* [[]0.*, *] * -30 % * confirmed",
            "FP8 costs *  REFUTED",
            "One process each: what processes differ by is not in its rounds; 1 % is allowed for it.",
        ]
    )
    # A part of the suite leaves claims open, and says so.
    result, run = project.measure(*SIMULATED, "-k", "b8")
    assert [claim.word for claim in run.claims] == ["confirmed", "not testable here", "refuted"]
    result.stdout.fnmatch_lines(["1 claim not testable here, as not all their cells were measured"])


def test_claims_of_two_suites_are_told_apart_and_so_are_their_cells(project: Project) -> None:
    write(project, SUITE + CLAIMS)
    project.file("suites/again.energy.toml", SUITE + CLAIMS)
    result, run = project.measure(*SIMULATED, "--energy-report=page.html")
    assert len(run.claims) == 6
    result.stdout.fnmatch_lines(
        [
            "suites/again.energy.toml::llama-3.1-8b-vllm-*-b* * measured",
            "suites/precision.energy.toml::llama-3.1-8b-vllm-*-b* * measured",
            "again: FP8 costs * REFUTED",
            "precision: FP8 costs * REFUTED",
        ]
    )
    assert '"precision: FP8 costs"' in (project.path / "page.html").read_text()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('dtype = "bf61"', "dtype 'bf61' is not known: use one of fp32, bf16,"),
        ('kv_cache_dtype = "fp9"', "dtype 'fp9' is not known: use one of fp32, bf16,"),
        ('quantization = "fp9"', "quantization 'fp9' is not known: use one of none, fp8,"),
    ],
)
def test_what_is_not_known_is_not_foretold_as_if_it_were_not_there(
    project: Project, setting: str, words: str
) -> None:
    write(project, f'[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\n{setting}\n')
    shown = project.run("--collect-only", *SIMULATED)
    shown.stdout.fnmatch_lines(["*<Cell llama-3.1-8b-vllm-*[!B]>"])
    assert "GiB" not in shown.stdout.str()
    result = project.run(*SIMULATED)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"llama-3.1-8b: its speed cannot be foretold: {words}*"])


CHANGES = """
import pathlib

def pytest_runtest_teardown():
    path = pathlib.Path("suites/precision.energy.toml")
    if path.exists():
        {change}
"""


@pytest.mark.parametrize(
    "change",
    ["path.unlink()", "path.write_text('[axes')", "path.write_text(path.read_text() + 'at_most = 9')"],
)
def test_a_suite_that_is_edited_while_it_is_measured_is_judged_as_it_was(
    project: Project, change: str
) -> None:
    write(project, SUITE + CLAIMS)
    project.file("conftest.py", CHANGES.format(change=change))
    result, run = project.measure(*SIMULATED)
    result.assert_outcomes(passed=4)
    assert [claim.word for claim in run.claims] == ["confirmed", "confirmed", "refuted"]


def test_a_claim_can_fail_the_run(project: Project) -> None:
    write(project, SUITE + CLAIMS.replace("at_least = 9", 'at_least = 9\nseverity = "fail"'))
    reports = [f"--energy-report={name}" for name in ("annotation:said.txt", "summary.md")]
    result = project.run(*SIMULATED, "-k", "b8", *reports)
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    annotated = (project.path / "said.txt").read_text()
    assert annotated.startswith(
        "::error title=Energy per token%3A 1 claim REFUTED%2C 2 simulated::REFUTED: FP8 costs"
    )
    summary = (project.path / "summary.md").read_text()
    assert summary.startswith("### Energy per token: 1 claim REFUTED, 2 simulated\n")
    result.stdout.fnmatch_lines(
        [
            "REFUTED: FP8 costs (joules_per_token ≥ 9); found 0.* [[]*]",
            "*= energy: 1 claim REFUTED, 2 measured =*",
            "FAILED suites/precision.energy.toml::claim: FP8 costs*",
        ]
    )


def test_a_claim_of_no_cell_is_an_error_of_collection(project: Project) -> None:
    write(project, SUITE + CLAIMS.replace("batch = 8", "batch = 9"))
    result = project.run("--collect-only")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*:21: claim[[]1]: no two cells of the grid are as of and to have it*"])
