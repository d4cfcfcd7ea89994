"""A run that is ended by SIGTERM or SIGHUP clears up as after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.projects import ALONE, Project

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_ended_run_leaves_no_folder_and_no_process(project: Project, name: str, tmp_path: Path) -> None:
    project.tests(
        """
import pathlib, tempfile

@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="tokenpower-engine-") as folder:
        yield folder

def test_long(energy, folder):
    pathlib.Path("begun").touch()
    time.sleep(600)
"""
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # This suite may itself run under nohup.
    begin = f"import signal, pytest; signal.signal(signal.{name}, signal.SIG_DFL); raise SystemExit(pytest.main())"
    run = subprocess.Popen(
        [sys.executable, "-c", begin, *ALONE],
        cwd=project.path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (project.path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    run.send_signal(getattr(signal, name))
    output, _ = run.communicate(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert f"KeyboardInterrupt: ended by {name}" in output
    assert not list(scratch.glob("tokenpower-engine-*"))


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = (
        "import os, signal; from pytest_tokenpower.core.signals import interrupt_when_terminated;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); undo = interrupt_when_terminated();"
        "os.kill(os.getpid(), signal.SIGHUP); undo(); print(signal.getsignal(signal.SIGTERM).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_DFL\n"
