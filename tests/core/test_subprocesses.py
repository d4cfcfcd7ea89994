"""All that a child has started ends with it, wherever it went."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pytest_tokenpower.core.subprocesses import ProcessGroup, inherited_path, processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems know groups only")

LEADER = """
import os, signal, subprocess, sys, time
from pytest_tokenpower.core.subprocesses import end_with_parent

# This suite may itself run in the background of a shell, which has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
end_with_parent(int(sys.argv[1]))
# Named after the test's folder: other copies of this suite may have sleepers of their own.
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]]

def daemon(env):
    '''Twice removed: its parent ends at once, and it leaves group and session.'''
    if not (child := os.fork()):
        subprocess.Popen(SLEEP, start_new_session=True, env=env)
        os._exit(0)
    os.waitpid(child, 0)

subprocess.Popen(SLEEP)
subprocess.Popen(SLEEP, start_new_session=True)
daemon(dict(os.environ))
if "cleared" in sys.argv:
    daemon({})
print("ready", flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(600)
"""


def started(tmp_path: Path, *arguments: str) -> tuple[ProcessGroup, int, set[int]]:
    before = {one.pid for one in processes()}
    theirs, ours = os.pipe()
    group = ProcessGroup(
        [sys.executable, "-c", LEADER, str(theirs), str(tmp_path), *arguments],
        log=tmp_path / "log.txt",
        env={**os.environ, "PYTHONPATH": inherited_path()},
        pass_fds=(theirs,),
    )
    os.close(theirs)
    until = time.monotonic() + 60
    while "ready" not in group.tail():
        assert time.monotonic() < until, group.tail()
        time.sleep(0.02)
    sleepers = {one.pid for one in processes() if one.pid not in before and named(one.pid, tmp_path)} - {
        group.pid
    }
    assert len(sleepers) == (4 if "cleared" in arguments else 3)
    return group, ours, sleepers


def named(pid: int, folder: Path) -> bool:
    try:
        return os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False  # has ended meanwhile


def gone(pids: set[int]) -> bool:
    until = time.monotonic() + 30
    while left := pids & {one.pid for one in processes()}:
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("arguments", [("cleared",), ("cleared", "stubborn")])
def test_what_left_the_session_ends_with_the_child(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    group, lifeline, sleepers = started(tmp_path, *arguments)
    group.interrupt()
    how = group.end(10.0 if arguments == ("cleared",) else 0.0)
    os.close(lifeline)
    assert gone(sleepers)
    assert how == ("signal SIGKILL" if "stubborn" in arguments else "signal SIGINT")


def test_what_left_the_session_ends_after_a_crash_of_the_child(tmp_path: Path) -> None:
    group, lifeline, sleepers = started(tmp_path)
    os.kill(group.pid, signal.SIGKILL)
    assert group.end(10.0) == "signal SIGKILL"
    os.close(lifeline)
    assert gone(sleepers)


def test_all_of_it_ends_with_the_parent(tmp_path: Path) -> None:
    group, lifeline, sleepers = started(tmp_path, "cleared")
    os.close(lifeline)  # as the system does when the parent is killed
    assert gone(sleepers)
    assert group.end(10.0) == "signal SIGKILL"
