"""One lock a GPU: processes that measure on the same board take turns."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_tokenpower.core import progress
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.runner import locks as exclusive
from pytest_tokenpower.runner.locks import hold_devices
from tests.support.levels import SUPPLY, supply
from tests.support.projects import ALONE, Project


def _hold(device_id: str, path: str) -> None:
    with hold_devices([device_id]):
        began = time.monotonic()
        time.sleep(0.2)
        Path(path).write_text(json.dumps([began, time.monotonic()]))


def test_holders_of_one_device_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_hold, args=("GPU-a", str(tmp_path / f"{at}.json"))) for at in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert _in_turns(tmp_path) == len(jobs)


def test_a_wait_for_another_holder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(exclusive, "QUIET_WAIT_S", 0.01)
    held, told = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_devices(["GPU-a"]):
            held.set()
            told.wait(10)

    lines = []

    def sink(line: str) -> None:
        lines.append(line)
        told.set()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    stop = progress.show_on(sink)
    try:
        with hold_devices(["GPU-a"]):
            assert lines == ["GPU-a: waiting for another process that measures on this GPU"]
    finally:
        stop()
        told.set()
        holder.join()


@pytest.mark.parametrize("planted", ["link", "open"])
def test_a_planted_folder_is_refused_and_left_alone(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder = tmp_path / f"tokenpower-locks-{os.getuid()}"
    if planted == "link":
        folder.symlink_to(private)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(MeterError, match="TMPDIR"), hold_devices(["GPU-a"]):
        pass
    assert private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())


def _in_turns(folder: Path) -> int:
    """How many spans there are, none of which overlaps another."""
    spans = sorted(json.loads(path.read_text()) for path in folder.glob("?.json"))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))
    return len(spans)


def test_xdist_workers_measure_one_after_another(project: Project) -> None:
    """Each test notes when its workload ran; the spans of two workers do not overlap."""
    supply(project)
    project.tests(
        """
import json
from pathlib import Path

from at_level import at_level

@pytest.mark.parametrize("name", "ab")
def test_work(energy, name):
    began = time.monotonic()
    at_level(energy, 1.0)
    time.sleep(0.2)
    Path(f"{name}.json").write_text(json.dumps([began, time.monotonic()]))
"""
    )
    project.run(*ALONE, "-n2", SUPPLY).assert_outcomes(passed=2)
    assert _in_turns(project.path) == 2


def test_boards_that_are_not_there_are_nobody_elses(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes the locks of the boards that it measures; simulated and replayed ones have none."""
    taken: list[tuple[str, ...]] = []

    @contextmanager
    def noted(device_ids: Iterable[str]) -> Iterator[None]:
        taken.append(tuple(device_ids))
        yield

    monkeypatch.setattr(exclusive, "hold_devices", noted)
    supply(project)
    project.tests(
        """
from at_level import at_level

def test_work(energy):
    at_level(energy, 1.0)
"""
    )
    for arguments in (["--energy-record=run.jsonl", SUPPLY], ["--energy-source=replay:run.jsonl"], []):
        project.run(*arguments).assert_outcomes(passed=1)
    assert taken == [("supply",), (), ()]
