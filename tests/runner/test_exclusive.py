"""One lock a GPU: processes that measure on the same board take turns."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pwd
import re
import subprocess
import sys
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_hold, args=("GPU-a", str(tmp_path / f"{at}.json"))) for at in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert _in_turns(tmp_path) == len(jobs)


HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "r+b")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's cache, and the folder of the locks in it."""
    monkeypatch.delenv(exclusive.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenpower-locks"


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Lines that are told although the user wants nothing but the urgent."""
    lines: list[str] = []
    stop = progress.show_on(lines.append, urgent_only=True)
    yield lines
    stop()


@pytest.mark.parametrize("seen", [True, False])
def test_a_wait_names_the_process_that_holds_the_lock(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    monkeypatch.setattr(exclusive, "QUIET_WAIT_S", 0.0)
    with hold_devices(["GPU-a"]):
        pass
    me = f"process {os.getpid()} of user {pwd.getpwuid(os.getuid()).pw_name} on {os.uname().nodename}"
    assert (folder / "GPU-a.lock").read_text() == me
    monkeypatch.setattr(exclusive, "is_in_tree", lambda pid: False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "GPU-a.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        stop = progress.show_on(lambda line: holder.stdin and holder.stdin.close())
        if not seen:
            monkeypatch.setattr(exclusive, "_holding_pid", lambda inode: None)
        with hold_devices(["GPU-a"]):
            pass
        stop()
    who = f"process {holder.pid} (python" if seen else me
    assert told[0].startswith(f"GPU-a: waiting for {who}")
    assert re.search(r"which measures on this GPU \(\d+ s so far\)$", told[0])


def test_a_wait_for_a_process_of_the_same_run_is_no_news(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "QUIET_WAIT_S", 0.0)
    lines: list[str] = []
    held, waited = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_devices(["GPU-a"]):
            held.set()
            waited.wait(10)

    def note(line: str) -> None:
        lines.append(line)
        waited.set()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    stop = progress.show_on(note)
    with hold_devices(["GPU-a"]):
        stop()
        holder.join()
    assert f"waiting for process {os.getpid()} (" in lines[0]
    assert told == []


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_a_planted_folder_is_refused_and_left_alone(planted: str, folder: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder.parent.mkdir()
    if planted == "link":
        folder.symlink_to(private)
    elif planted == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    with pytest.raises(MeterError, match="have it removed, or name a folder of yours in TOKENPOWER_LOCKS"):
        _hold_nothing()
    assert private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())


@pytest.mark.parametrize("planted", ["link", "pipe", "folder"])
def test_a_planted_lock_is_refused_and_left_alone(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv(exclusive.FOLDER_VARIABLE, str(shared))
    mine = tmp_path / "mine"
    mine.write_text("mine")
    lock = shared / "GPU-a.lock"
    if planted == "link":
        lock.symlink_to(mine)
    elif planted == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(MeterError, match=r"GPU-a\.lock: this lock of a GPU"):
        _hold_nothing()
    assert mine.read_text() == "mine"


def test_a_file_with_a_second_name_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv(exclusive.FOLDER_VARIABLE, str(shared))
    mine = tmp_path / "mine"
    mine.write_text("mine")
    os.link(mine, shared / "GPU-a.lock")
    _hold_nothing()
    assert mine.read_text() == "mine"


def test_a_shared_folder_must_keep_files_of_others_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv(exclusive.FOLDER_VARIABLE, str(shared))
    with pytest.raises(MeterError, match="no folder for locks"):
        _hold_nothing()
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(MeterError, match="mode 1777"):
        _hold_nothing()
    shared.chmod(0o1777)
    _hold_nothing()
    assert (shared / "GPU-a.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("theirs", [True, False])
def test_without_a_cache_of_ones_own_the_temporary_folder_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: bool
) -> None:
    monkeypatch.delenv(exclusive.FOLDER_VARIABLE, raising=False)
    cache = tmp_path / "cache"
    cache.mkdir()
    if theirs:
        if os.getuid() != 0:
            pytest.skip("needs root, to give a folder away")
        os.chown(cache, 12345, -1)
    for variable in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(variable, str(cache) if theirs else "not/absolute")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _hold_nothing()
    assert (tmp_path / f"tokenpower-{os.getuid()}" / "tokenpower-locks" / "GPU-a.lock").exists()


def test_in_a_container_it_is_said_how_far_the_locks_reach(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mark").touch()
    monkeypatch.setattr(exclusive, "_CONTAINER_MARKS", (str(tmp_path / "mark"),))
    monkeypatch.setattr(exclusive, "_noted", [])
    lines: list[str] = []
    stop = progress.show_on(lines.append)
    for _ in range(2):
        _hold_nothing()
    stop()
    assert len(lines) == 1
    assert f"locks in {folder} do not reach other containers" in lines[0]


def _hold_nothing() -> None:
    with hold_devices(["GPU-a"]):
        pass


def _in_turns(folder: Path) -> int:
    """How many spans there are, none of which overlaps another."""
    spans = sorted(json.loads(path.read_text()) for path in folder.glob("?.json"))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))
    return len(spans)


@pytest.mark.slow
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
