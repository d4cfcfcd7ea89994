"""What commands must not believe of stored records: copies, other commits, and figures without the meter's error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_tokenpower.core.records import encode_run
from pytest_tokenpower.gate.noise import ReplayedGate
from pytest_tokenpower.store.store import Store
from tests.support.commands import Command
from tests.support.histories import at_level
from tests.support.kept_records import identical, keep
from tests.support.repositories import TEST, Git, run


def test_a_copied_record_is_no_further_run(tmp_path: Path, tokenpower: Command) -> None:
    runs = identical(4)
    alone = tokenpower("noise", keep(tmp_path / "kept", runs))
    (tmp_path / "kept" / "copy.json").write_bytes(encode_run(runs[0]))
    copied = tokenpower("noise", f"--from={tmp_path / 'kept'}")
    assert (copied.code, copied.out) == (alone.code, alone.out)
    assert "1 of 5 records left out: copies" in copied.err
    assert alone.err == ""


def test_runs_of_other_commits_are_not_passed_off_as_identical(tmp_path: Path, tokenpower: Command) -> None:
    runs = identical(4)
    runs[1] = replace(runs[1], commit="f" * 40)
    assert "the runs are of different commits" in tokenpower("noise", keep(tmp_path / "kept", runs)).err


def test_records_of_earlier_sittings_are_looked_at_as_those_that_are_read(
    tmp_path: Path, tokenpower: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    *earlier, new, last, once_more = identical(6)
    runs = iter([new, last, once_more])
    monkeypatch.setattr("pytest_tokenpower.cli.noise.ChildRun.run", lambda *_: next(runs))
    keep(tmp_path / "kept", [replace(one, commit="f" * 40) for one in (*earlier, earlier[0])])
    ended = tokenpower("noise", "--runs=3", f"--keep={tmp_path / 'kept'}")
    assert f"--keep={tmp_path / 'kept'}: 1 of 4 records left out: copies" in ended.err
    assert "the runs are of different commits" in ended.err
    assert "; 6 runs, " in ended.out


def test_every_verdict_that_fails_identical_code_is_a_false_failure() -> None:
    judged = ReplayedGate(5, {"passed": 5, "invalid": 2, "regressed": 1, "inconclusive": 1})
    assert (judged.runs, judged.false_failures) == (9, 3)


def test_the_interval_of_a_stored_figure_holds_the_meters_own_error(
    git: Git, store: Store, tokenpower: Command
) -> None:
    for number in range(3):
        measured = at_level(seed=number)
        coarse = tuple(replace(one, stderr_joules=20.0) for one in measured.rounds)
        store.write(run(number, replace(measured, rounds=coarse), commit=git.commit(str(number))))
    (series,) = json.loads(tokenpower("history", TEST, "--json").out)["series"]
    for each in series["runs"]:
        low, high = each["interval"]
        # 20 J of 100 in each of ten rounds.
        assert (high / low - 1) / 2 > 0.1
