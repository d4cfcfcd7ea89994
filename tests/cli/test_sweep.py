"""`tokenpower sweep`: a suite outside pytest's terminal, with results in files, and on again after an interruption."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_tokenpower.suites.resume import read_journal
from tests.support.commands import Command

pytestmark = pytest.mark.slow

SUITE = """\
[axes]
model = "llama-3.1-8b"
engine = "vllm"
batch = {batches}

[limits]
min_rounds = 2
max_rounds = 2

[[claim]]
name = "batching saves"
along = "batch"
shape = "falls"
severity = "fail"
"""
PYTEST = ("--", "--energy-source=simulated", "--energy-simulated-engines", "-p", "no:cacheprovider")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    path = tmp_path / "batch.energy.toml"
    path.write_text(SUITE.format(batches=[1, 64]))
    return path


def test_a_sweep_shows_each_cell_and_keeps_its_results(suite: Path, tokenpower: Command) -> None:
    ended = tokenpower("sweep", suite.name, "--csv", "c.csv", "--json", "c.json", *PYTEST)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [line.partition(" ")[0] for line in lines[:2]] == ["1/2", "2/2"]
    assert "J/token, about" in lines[0]
    assert "left" in lines[0]
    assert "SIMULATED, not measured: 1x Simulated H100 80GB, power ring (gpu energy)" in lines
    # The table has the progress lines' figures, in their unit.
    [shown] = re.findall(r" passed ([\d.]+) J/token", lines[0])
    [cell] = [line.split() for line in lines if line.startswith("llama-3.1-8b-vllm-b1 ")][:1]
    assert cell[1] == shown
    assert "batching saves  falls along batch  0." in ended.out
    # The one has the shorter TTFT, the other the fewer joules; of joules and tokens/s alone one is the better in both.
    assert "no other cell is as good in all (2 of 2)" in ended.out
    again = tokenpower("sweep", suite.name, "--resume", "--pareto", "tokens_per_second", *PYTEST)
    assert "no other cell is as good in all (1 of 2)" in again.out
    with open("c.csv", encoding="utf-8", newline="") as stream:
        rows = {row["cell"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"llama-3.1-8b-vllm-b1", "llama-3.1-8b-vllm-b64"}
    assert float(rows["llama-3.1-8b-vllm-b64"]["joules_per_token"]) > 0
    assert rows["llama-3.1-8b-vllm-b64"]["batch"] == "64"
    kept = json.loads(Path("c.json").read_text())
    assert [claim["word"] for claim in kept["claims"]] == ["confirmed"]
    assert {cell["cell"] for cell in kept["cells"]} == set(rows)


def test_results_that_find_no_room_name_their_file_and_keep_what_was_there(
    suite: Path, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("c.csv").write_text("old")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pytest_tokenpower.cli.sweep.write_whole", full)
    ended = tokenpower("sweep", suite.name, "--csv", "c.csv", *PYTEST)
    assert ended.code == 4
    assert ended.err == (
        "tokenpower sweep: --csv=c.csv: No space left on device: the same command with --resume writes it without "
        "measuring again\n"
    )
    assert Path("c.csv").read_text() == "old"


def test_the_cells_that_are_not_selected_are_not_counted(suite: Path, tokenpower: Command) -> None:
    ended = tokenpower("sweep", suite.name, "--csv", "c.csv", "--pareto", "quality", *PYTEST, "-k", "b64")
    assert ended.out.startswith("1/1 llama-3.1-8b-vllm-b64: passed")
    # What was measured is kept where what it is asked for besides is not there.
    assert ended.code == 4
    assert "--pareto=quality: no good measurement of a cell has it" in ended.err
    assert Path("c.csv").read_text().count("\n") == 2


def test_a_claim_that_fails_is_its_exit_code(suite: Path, tokenpower: Command) -> None:
    suite.write_text(suite.read_text().replace('"falls"', '"rises"'))
    ended = tokenpower("sweep", suite.name, *PYTEST)
    assert ended.code == 1
    assert "REFUTED" in ended.out
    assert "3/2" not in ended.out


def test_mistakes_are_said_before_anything_runs(suite: Path, tokenpower: Command) -> None:
    assert tokenpower("sweep").code == 4
    ended = tokenpower("sweep", "nowhere.energy.toml")
    assert ended.code == 4
    assert "nowhere.energy.toml: this suite cannot be read" in ended.err
    ended = tokenpower("sweep", suite.name, "--pareto", "tokens_per_sec")
    assert ended.code == 4
    assert ended.err.startswith(
        "tokenpower sweep: --pareto=tokens_per_sec: is no figure; there are joules_per_token,"
    )
    ended = tokenpower("sweep", suite.name, "--csv", "no/folder.csv")
    assert ended.code == 4
    assert "--csv=no/folder.csv: must be a file in a folder that exists" in ended.err
    suite.write_text("[axes]\nbach = 1\n")
    ended = tokenpower("sweep", suite.name)
    assert ended.code == 4
    assert "batch.energy.toml:2: axes.bach: there is no such field" in ended.err
    ended = tokenpower("sweep", "--schema")
    assert json.loads(ended.out)["title"] == "Suite of pytest-tokenpower (*.energy.toml)"


def test_a_mistake_in_pytests_arguments_ends_with_its_words(suite: Path, tokenpower: Command) -> None:
    ended = tokenpower("sweep", suite.name, "--", "--no-such-option")
    assert ended.code == 4
    assert "unrecognized arguments: --no-such-option" in ended.err


KILLS, CELLS = 10, 60


def test_a_sweep_that_is_killed_goes_on_without_measuring_a_cell_twice(
    suite: Path, tokenpower: Command
) -> None:
    suite.write_text(SUITE.format(batches=list(range(1, CELLS + 1))))
    command = [sys.executable, "-m", "pytest_tokenpower", "sweep", suite.name, "--resume", *PYTEST]

    def journal() -> tuple[str, ...]:
        paths = list(Path(".tokenpower/sweeps").glob("batch-*.jsonl"))
        return tuple(read_journal(paths[0].read_bytes()).finished) if paths else ()

    chance = random.Random(15)
    for kill in range(1, KILLS + 1):
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # At least one cell more each time, so that all kills fall inside the sweep; when in a cell, chance says.
        while len(journal()) < kill and child.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.2))
        # The command and the pytest that it has started, which has a session of its own.
        for pid in (child.pid, *_children(child.pid)):
            os.kill(pid, signal.SIGKILL)
        child.wait()
    before = journal()
    assert KILLS <= len(before) < CELLS
    ended = tokenpower("sweep", suite.name, "--resume", "--json", "c.json", *PYTEST)
    assert ended.code == 0, ended.err
    after = journal()
    # In the order in which they were measured: none twice, none lost.
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == CELLS
    data = next(Path(".tokenpower/sweeps").glob("batch-*.jsonl")).read_bytes()
    assert data.count(b"\n") == 1 + CELLS
    cells = json.loads(Path("c.json").read_text())["cells"]
    assert len(cells) == CELLS
    first = {cell["cell"]: cell["joules_per_token"] for cell in cells}
    again = tokenpower("sweep", suite.name, "--resume", "--json", "d.json", *PYTEST)
    assert again.code == 0
    assert {
        c["cell"]: c["joules_per_token"] for c in json.loads(Path("d.json").read_text())["cells"]
    } == first


def _children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_on_a_terminal_the_table_is_drawn_over_itself_and_ctrl_c_says_how_to_go_on(suite: Path) -> None:
    import pty

    suite.write_text(
        '[axes]\nmodel = "llama-3.1-8b"\nengine = "vllm"\nbatch = ['
        + ", ".join(map(str, range(1, 400)))
        + "]\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        # This suite may itself run in the background of a shell, which has it ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        command = ("sweep", str(suite), "--", "--energy-source=simulated", "--energy-simulated-engines")
        os.execv(sys.executable, [sys.executable, "-m", "pytest_tokenpower", *command])
    shown, asked = b"", False
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if not asked and shown.count(b"F\x1b[J") > 2:
            os.write(terminal, b"\x03")
            asked = True
    _, status = os.waitpid(child, 0)
    assert b"\\u001b" not in shown
    assert b" of 399 cells; --resume goes on with it)" in shown
    assert os.waitstatus_to_exitcode(status) == 130
