"""A child in a process group of its own: started with a log, waited for, and ended with all its descendants."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pytest_tokenpower.errors import UsageError

TAIL_LINES = 20

TAIL_BYTES = 6000

CAUSES = 3

CAUSES_BYTES = 500_000

_RAISED = re.compile(
    r"(?:\([^()]*\) )?(?:(?:ERROR|CRITICAL) [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception|Exit)\w*): (.*\S)"
)
"""The last line of a traceback, perhaps behind vLLM's names of a process, a level, a time and a place."""


class ProcessGroup:
    """``arguments`` run in ``cwd`` in a session of their own, standard output and error in ``log``; POSIX only."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        env: dict[str, str],
        pass_fds: Iterable[int] = (),
        cwd: Path | None = None,
    ) -> None:
        if os.name != "posix":
            raise UsageError(
                "engines and restarts in processes of their own need Linux or macOS; EngineSpec(..., isolated=False) "
                "runs an engine in the tests' process"
            )
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                arguments,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                env=env,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._ended = False

    def exited(self) -> bool:
        """Whether the child itself has ended; it is not reaped, so that its group's number stays its own."""
        if self._ended:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: it is reaped after all
            return self._process.poll() is not None
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return found is not None

    def interrupt(self) -> None:
        """Ask the child alone to end, as Ctrl-C does."""
        if not self.exited():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def end(self, patience_s: float) -> str:
        """Wait so long for the child to end by itself, then kill what is left of its group; says how it ended."""
        if not self._ended:
            until = time.monotonic() + patience_s
            while not self.exited() and time.monotonic() < until:
                time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            until = time.monotonic() + 10.0
            # What was orphaned is reaped by somebody else; its memory is free once it is gone or a zombie.
            while group_members(self.pid) and time.monotonic() < until:
                time.sleep(0.02)
            self._ended = True
        code = self._process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def raised(self, offset: int, but: str) -> list[str]:
        """The first few exceptions that the log names from ``offset`` on, without those that ``but`` speaks of."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(offset, self.log.stat().st_size - CAUSES_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        found = [match for line in lines if (match := _RAISED.fullmatch(line.rstrip())) is not None]
        said = [f"{match[1]}: {match[2]}" for match in found if match[2] not in but]
        return list(dict.fromkeys(said))[:CAUSES]

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"(the log {self.log} cannot be read: {error})"
        return "\n".join(lines[-TAIL_LINES:]) or "(nothing was printed)"


def group_members(group: int) -> tuple[int, ...]:
    """The processes of a group that still run, from /proc; zombies are none. Empty where there is no /proc."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command may hold spaces and brackets: state, parent and group follow its last bracket.
            state, _, its_group = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            members.append(int(entry.name))
    return tuple(members)


def end_with_parent(lifeline: int) -> None:
    """In a child: wait for the end of the parent, which holds the other end of this pipe, and take its group along."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    kill_group()


def kill_group() -> None:
    """End this process and its whole group at once."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def inherited_path() -> str:
    """PYTHONPATH for a child that is to find the modules that this process finds."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)
