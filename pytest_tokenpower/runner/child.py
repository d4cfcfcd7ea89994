"""A pytest run in a fresh process that measures, and its record: the unit of evidence of every restart."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_tokenpower.core.records import RunRecord, decode_run
from pytest_tokenpower.core.settings import CHILD_VARIABLE, FOREIGN_TREE_VARIABLE, LOADED_VARIABLE
from pytest_tokenpower.core.subprocesses import ProcessGroup
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.runner.sources import shown

POLL_S = 0.05

PATIENCE_S = 10.0
"""How long an interrupted child may take to end by itself."""

_DROPPED = {
    "--energy-baseline": 1,
    "--energy-rerun-baseline": 0,
    "--energy-max-seconds": 1,
    "--energy-autosave": 0,
    "--energy-resume": 0,
    "--energy-save": 1,
    "--energy-json": 1,
    "--energy-record": 1,
    # They open their files as they are read.
    "--benchmark-json": 1,
    "--debug": 0,
    "-n": 1,
    "--numprocesses": 1,
}
"""Options of the whole run that its child runs do not repeat, with the number of their values.

What else it writes, the child itself takes back (plugin/child.py).
"""


_NOT_INHERITED = ("COV_CORE_", "COVERAGE_PROCESS_", "GITHUB_STEP_SUMMARY")
"""Beginnings of variables by which a process adds to the coverage data or the job summary of its parent."""


def child_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a child run: without what belongs to the whole run."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, has_value, _ = argument.partition("=")
        if name not in _DROPPED:
            kept.append(argument)
        elif not has_value:
            for _ in range(_DROPPED[name]):
                next(rest, None)
    return kept


def single_test_arguments(
    arguments: Sequence[str], positional: Sequence[str], test: str, rootdir: Path, ini: Path | None
) -> list[str]:
    """Return the command line of a child run of one test alone, by its node id.

    Everything else that was asked for stays.

    ``positional`` are the paths and node ids that pytest found among the arguments (some may be the ini file's).
    """
    kept = child_arguments(arguments)
    for each in positional:
        places = [at for at, argument in enumerate(kept) if argument == each]
        if places:
            # The same word may be an option's value: --rootdir tests tests.
            del kept[next((at for at in places if at == 0 or not _wants_value(kept[at - 1])), places[-1])]
    # The last of an option counts: nothing is selected away, also not by addopts. The node id is no path: joined as
    # one, a parameter such as http://host would lose a slash.
    here = [f"--rootdir={rootdir}", *([f"--config-file={ini}"] if ini else []), "-k", "", "-m", ""]
    return [*kept, *here, f"{rootdir}/{test}"]


def _wants_value(argument: str) -> bool:
    return argument.startswith("-") and "=" not in argument


@dataclass(frozen=True)
class ChildRun:
    """``python -m pytest`` with ``arguments`` in ``folder``; ``top``, a work tree, is first on its import path.

    ``import_roots`` are further folders of that tree that code is imported from, relative to its top. ``foreign`` is
    a work tree that it must import nothing from.
    """

    folder: Path
    arguments: Sequence[str]
    python: str = sys.executable
    top: Path | None = None
    import_roots: tuple[Path, ...] = ()
    foreign: Path | None = None

    def run(self, record: Path, who: str, *, timeout_s: float = math.inf) -> RunRecord:
        """Run it to its end and read its record from the file ``record``; its output goes into a file beside that.

        However this ends, also when it is interrupted, the child and all that it started in its process group have
        ended. Raises TokenPowerError with the output's tail where nothing was measured, or not within ``timeout_s``;
        ``who`` names the run in it.
        """
        cache = record.with_suffix(".cache")
        command = [
            *(self.python, "-m", "pytest"),
            *(("-p", "pytest_tokenpower.plugin.loaded_modules") if self.foreign else ()),
            *_own_cache(cache, self.arguments),
            *self.arguments,
            f"--energy-json={record}",
        ]
        until = time.monotonic() + timeout_s
        loaded = record.with_suffix(".loaded")
        environment = self._environment()
        if self.foreign:
            environment |= {FOREIGN_TREE_VARIABLE: str(self.foreign), LOADED_VARIABLE: str(loaded)}
        child = ProcessGroup(command, log=_log_of(record), env=environment, cwd=self.folder)
        try:
            while not child.exited() and time.monotonic() < until:
                time.sleep(POLL_S)
            in_time = child.exited()
        finally:
            try:
                how = _end(child)
            finally:
                shutil.rmtree(cache, ignore_errors=True)
        if not in_time:
            raise TokenPowerError(
                f"{who} in {self.folder} was ended after {timeout_s:.0f} s, all the time there was:\n{child.tail()}"
            )
        # 0 and 1: the tests ran. Anything else (a collection error, a crash) measured not what was asked for.
        if how not in ("exit status 0", "exit status 1") or not record.exists():
            raise TokenPowerError(
                f"{who} in {self.folder} measured nothing (pytest ended with {how}):\n{child.tail()}"
            )
        if self.foreign:
            self._check_sources(loaded, who)
        return decode_run(record.read_bytes(), source=str(record))

    def _check_sources(self, loaded: Path, who: str) -> None:
        """Raise TokenPowerError where the run imported code of the other tree, or does not say."""
        try:
            modules = json.loads(loaded.read_bytes())
        except (OSError, ValueError) as error:
            raise TokenPowerError(
                f"{who} does not say what it has imported, so it proves nothing ({error})"
            ) from error
        if modules:
            raise TokenPowerError(
                f"{who} did not measure the code of its own commit: it imported {shown(modules)}, of the work tree at "
                f"{self.foreign}. An installed copy or an import hook comes first there: have the package found by the "
                "import path (a plain src or package folder, no compiled parts), or compare with stored runs instead "
                "(--energy-autosave on the baseline)"
            )

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        environment = {**inherited, CHILD_VARIABLE: "1", "PYTHONUNBUFFERED": "1"}
        if self.top is None:
            return environment
        # The package under test may be installed from another work tree: this one goes first.
        places = dict.fromkeys((self.top, self.top / "src", *(self.top / each for each in self.import_roots)))
        sources = [str(path) for path in places if path.is_dir()]
        given = environment.get("PYTHONPATH")
        return {**environment, "PYTHONPATH": os.pathsep.join([*sources, *([given] if given else [])])}


def _own_cache(folder: Path, arguments: Sequence[str]) -> list[str]:
    # Without pytest's cache plugin, the options of it that an ini file's addopts give would be unknown, and its
    # cache_dir, too. Where the command line takes the plugin away, there is nothing to point elsewhere.
    if any(argument.endswith("no:cacheprovider") for argument in arguments):
        return []
    return ["-o", f"cache_dir={folder}"]


def output_of(record: Path) -> str:
    """Return the last lines that the run with this record printed."""
    return "\n".join(_log_of(record).read_text("utf-8", "replace").splitlines()[-15:])


def _log_of(record: Path) -> Path:
    return record.with_suffix(".log")


def _end(child: ProcessGroup) -> str:
    """End a child that still runs as Ctrl-C would, so that its fixtures can clear up, then by force."""
    child.interrupt()
    try:
        return child.end(PATIENCE_S)
    except BaseException:
        child.end(0.0)
        raise
