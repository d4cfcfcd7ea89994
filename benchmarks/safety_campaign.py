"""Kills, races, damage and full disks against the store: what is lost, torn, changed unnoticed, or traced back.

    python benchmarks/safety_campaign.py [--kills 1000] [--writers 16] [--each 100] [--corruptions 2000] [--pushers 20]

Prints one row a part; exit status 1 where anything was lost, torn, changed or traced. Needs Linux. Runs of pytest are
forks of this process, which has imported all of it, and measure the simulated board.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pytest_tokenpower import cli
from pytest_tokenpower.core.files import write_whole
from pytest_tokenpower.core.records import MeasurementRecord, RoundRecord, RunRecord, encode_run
from pytest_tokenpower.core.types import Fact
from pytest_tokenpower.errors import TokenPowerError
from pytest_tokenpower.meters.recording import read_recording, write_recording
from pytest_tokenpower.meters.timeline import Timeline
from pytest_tokenpower.meters.types import CounterReading, Device, PowerSamples, Reading
from pytest_tokenpower.store import store as store_module
from pytest_tokenpower.store.store import Store

PROJECT = {
    "pytest.ini": "[pytest]\nenergy_source = simulated\nenergy_warmup_rounds = 0\n",
    "test_e.py": (
        "import pytest, time\n"
        "from pytest_tokenpower import TokenCount\n"
        "def work():\n    time.sleep(0.005)\n    return TokenCount(prompt=10, generated=100)\n"
        "@pytest.mark.power_budget(min_rounds=2, max_rounds=2)\n"
        "def test_a(energy):\n    energy(work)\n"
    ),
}

QUIET = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest", "-p", "no:cov")


@dataclass
class Tally:
    """What one part of the campaign came to."""

    part: str
    tried: int = 0
    lost: int = 0
    torn: int = 0
    silent: int = 0
    tracebacks: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def count(self, note: str, much: int = 1) -> None:
        """Add to a count that is neither good nor bad."""
        self.notes[note] = self.notes.get(note, 0) + much

    @property
    def bad(self) -> int:
        """How much went wrong."""
        return self.lost + self.torn + self.silent + self.tracebacks


def forked(work: Callable[[], int], log: Path) -> int:
    """Run ``work`` in a fork of this process, its output in ``log``; returns the fork's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a fork; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def project(folder: Path) -> Path:
    """Write a folder with one energy test."""
    folder.mkdir(parents=True)
    for name, text in PROJECT.items():
        (folder / name).write_text(text)
    return folder


def run_pytest(folder: Path, *arguments: str) -> int:
    """Run the project's test in this process."""
    os.chdir(folder)
    return int(pytest.main([*QUIET, *arguments, str(folder)]))


def run_record(number: int, rounds: int = 20) -> RunRecord:
    """Make a run as it is stored."""
    some = tuple(
        RoundRecord(10**12 + at, 1.25, 100.0 + number + at / 7, 0.5, 64, 256, device_joules={"GPU-1": 100.0})
        for at in range(rounds)
    )
    key: dict[str, Fact] = {"schema": 1, "gpu.name": "board", "board": "x"}
    measured = MeasurementRecord("test_e.py::test_a", key, "simulated", "gpu", "counter", some, True)
    identity = hashlib.sha256(str(number).encode()).hexdigest()
    created = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.{number:06}Z"
    return RunRecord(identity[:32], created, (measured,), commit=identity[:40], branch="main", dirty=False)


class _Die:
    """Kills this process at a line of the save: counted from where the record is encoded, over all that we wrote."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._ours = str(Path(store_module.__file__).parents[1])

    def __call__(self, frame: FrameType, event: str, _: Any) -> _Die | None:
        if not frame.f_code.co_filename.startswith(self._ours):
            return None
        if event == "line":
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def kills(folder: Path, number: int) -> Tally:
    """Kill runs of pytest while they save: half at each line in turn, half at a random moment, also inside calls."""
    tally = Tally("kills at the save, through pytest")
    place = project(folder / "kills")
    store = Store(place / "kept")
    written = Store.write
    whole: dict[str, bytes] = {}
    lines = 1
    for at in range(number):
        by_line = at % 2 == 0
        began, begin = os.pipe()
        which = (at // 2) % lines

        def work(by_line: bool = by_line, which: int = which, begin: int = begin) -> int:
            def write(self: Store, run: RunRecord) -> Path:
                os.write(begin, b"x")
                if by_line:
                    sys.settrace(_Die(which))
                try:
                    return written(self, run)
                finally:
                    sys.settrace(None)

            Store.write = write  # type: ignore[method-assign]
            return run_pytest(place, "--energy-autosave", "--energy-storage=kept")

        pid = forked(work, folder / "kills.log")
        os.close(begin)
        os.read(began, 1)
        if not by_line:
            time.sleep(random.random() * 0.004)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        os.close(began)
        tally.tried += 1
        tally.count("killed" if code == -signal.SIGKILL else "had ended before")
        if by_line:
            # Once the count is beyond the last line of the save, it begins anew.
            lines = lines + 1 if code == -signal.SIGKILL and which == lines - 1 else lines
        _look(store, whole, tally)
    tally.count("lines of the save", lines)
    text = (folder / "kills.log").read_text(errors="replace")
    tally.tracebacks = text.count("Traceback (most recent call last)") + text.count("INTERNALERROR>")
    left = [name for name in os.listdir(store.folder) if name.endswith(".tmp")]
    tally.count("temporary files left", len(left))
    for name in left:
        os.utime(store.folder / name, (0, 0))
    store.check_writable()
    tally.count(
        "of them after the next save", sum(name.endswith(".tmp") for name in os.listdir(store.folder))
    )
    tally.count("runs stored", len(whole))
    return tally


def _look(store: Store, whole: dict[str, bytes], tally: Tally) -> None:
    """Compare the store with what it held before: nothing goes, nothing changes, nothing is half there."""
    fresh = Store(store.path)
    seen = set()
    for entry in fresh.entries():
        seen.add(entry.file)
        data = entry.path.read_bytes()
        if entry.file in whole:
            tally.silent += data != whole[entry.file]
            continue
        try:
            fresh.load(entry)
        except TokenPowerError:
            tally.torn += 1
        else:
            whole[entry.file] = data
    tally.lost += len(whole.keys() - seen)


def writers(folder: Path, processes: int, each: int) -> Tally:
    """Let processes write to one store at the same time."""
    tally = Tally(f"{processes} writers of {each} runs each", tried=processes * each)
    place = folder / "writers"
    place.mkdir()

    def work(first: int) -> int:
        store = Store(place)
        for number in range(first, first + each):
            store.write(run_record(number, rounds=4))
        return 0

    pids = [forked(lambda at=at: work(at * each), folder / "writers.log") for at in range(processes)]  # type: ignore[misc]
    tally.tracebacks = sum(ended(pid) != 0 for pid in pids)
    store = Store(place)
    for number in range(processes * each):
        run = run_record(number, rounds=4)
        try:
            found = Store(place).load(store.open_file(store.folder / store_module.file_name(run)))
        except TokenPowerError as error:
            lost = "cannot be read" in str(error)
            tally.lost += lost
            tally.torn += not lost
        else:
            tally.silent += found != run
    return tally


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Damage bytes as disks, transfers and hands do."""
    at = chance.randrange(len(data))
    size = min(chance.choice((1, 16, 512)), len(data) - at)
    other = chance.randrange(len(data))
    kind = chance.randrange(8)
    changed = bytearray(data)
    if kind <= 1:
        changed[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        changed[at : at + size] = bytes(size)
    elif kind == 3:
        changed[at : at + size] = chance.randbytes(size)
    elif kind == 4:
        del changed[at:]
    elif kind == 5:
        del changed[at : at + size]
    elif kind == 6:
        changed[at:at] = changed[other : other + size]
    else:  # a digit becomes another one: JSON, and plausible
        digits = [place for place, byte in enumerate(changed) if 48 <= byte <= 57]
        changed[chance.choice(digits)] = chance.randrange(48, 58)
    return bytes(changed)


def corruptions(folder: Path, number: int) -> Tally:
    """Damage stored runs and recordings, and read them by every way."""
    tally = Tally("corruptions of stored runs and recordings")
    chance = random.Random(12)
    place = folder / "corruptions"
    store = Store(place)
    run = run_record(7)
    path = store.write(run)
    good = path.read_bytes()
    commands: tuple[tuple[str, ...], ...] = (
        ("list",),
        ("history", "test_a"),
        ("show",),
        ("compare", f"path:{path}", f"path:{path}"),
    )
    for at in range(number // 2):
        bad = damaged(good, chance)
        path.write_bytes(bad)
        fresh = Store(place)
        with _traced(tally):
            (entry,) = fresh.entries()
            try:
                read = fresh.load(entry), fresh.measurement(entry, "test_e.py::test_a")
            except TokenPowerError:
                tally.count("named and left out")
            else:
                tally.count("the same all the same")
                tally.silent += read != (run, run.measurements[0])
        if at % 10 == 0:
            command = commands[at // 10 % len(commands)]
            code, said = _command(*command, f"--storage={place}")
            tally.tracebacks += code not in (0, 1, 4) or "Traceback" in said
        tally.tried += 1
    timeline = Timeline()
    timeline.add_device(Device("GPU-1", "gpu", "board", "nvml", "measured"))
    import numpy as np

    t_ns = np.arange(1, 400, dtype=np.int64) * 20_000_000
    timeline.append(Reading("GPU-1", PowerSamples(t_ns, t_ns // 1_000_000, held=True)))
    timeline.append(
        Reading("GPU-1", counters=[CounterReading(n * 10**9, n * 10**9 + 9, n * 10**6) for n in range(8)])
    )
    for name in ("r.jsonl", "r.jsonl.gz"):
        recording = folder / name
        write_recording(recording, timeline, [], realtime_offset_ns=10**18)
        good, held = recording.read_bytes(), _held(recording)
        for _ in range(number // 4):
            bad = damaged(good, chance)
            recording.write_bytes(bad)
            with _traced(tally):
                try:
                    again = _held(recording)
                except TokenPowerError:
                    tally.count("named and left out")
                else:
                    tally.count("the same all the same")
                    tally.silent += again != held
            tally.tried += 1
    return tally


def _held(path: Path) -> object:
    found = read_recording(path)
    power, counters = found.timeline.power("GPU-1"), found.timeline.counters("GPU-1")
    assert power is not None
    return (
        *(column.tolist() for column in (power.t_ns, power.milliwatts, counters.t0_ns, counters.microjoules)),
        found.devices,
        found.windows,
    )


@contextlib.contextmanager
def _traced(tally: Tally) -> Iterator[None]:
    try:
        yield
    except Exception:
        traceback.print_exc()
        tally.tracebacks += 1


def _command(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.main(list(arguments))
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception:
            code = 70
            out.write(traceback.format_exc())
    return code, out.getvalue()


def full_disk(folder: Path, number: int) -> Tally:
    """Let writes end early: the store, a record, a recording and whole runs of pytest, at every length of a file."""
    tally = Tally("full disk, at any byte")
    place = project(folder / "full")
    whole: dict[str, bytes] = {}
    store = Store(place / "kept")
    record, recording = place / "run.json", place / "run.jsonl"
    write_whole(record, b"old")
    recording.write_bytes(b"old")
    size = len(encode_run(run_record(0)))
    for at in range(number):
        by_pytest = at % 10 == 0
        limit = max(at * 2 * size // number, 1)

        def work(limit: int = limit, by_pytest: bool = by_pytest, at: int = at) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            # The log of this fork is a file as well, and keeps its room.
            if not by_pytest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                for write in (
                    lambda: store.write(run_record(at)),
                    lambda: write_whole(record, encode_run(run_record(at))),
                    lambda: write_recording(recording, Timeline(), [], realtime_offset_ns=0),
                ):
                    with contextlib.suppress(TokenPowerError, OSError):
                        write()
                return 0
            stored = store_module.publish

            def publish(folder: Path, file: str, data: bytes) -> None:
                if not file.startswith(".probe"):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    stored(folder, file, data)
                finally:
                    resource.setrlimit(
                        resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                    )

            store_module.publish = publish
            return run_pytest(place, "--energy-autosave", "--energy-storage=kept")

        code = ended(forked(work, folder / "full.log"))
        tally.tried += 1
        tally.tracebacks += code not in (0, 3)
        _look(store, whole, tally)
        for path in (record, recording):
            tally.torn += not (path.read_bytes() == b"old" or path.read_bytes().endswith(b'"}\n'))
    text = (folder / "full.log").read_text(errors="replace")
    tally.tracebacks += text.count("Traceback (most recent call last)") + text.count("INTERNALERROR>")
    tally.count("runs that said that they are not stored", text.count("this run is NOT stored"))
    tally.count("runs stored", len(whole))
    tally.count("temporary files left", sum(name.endswith(".tmp") for name in os.listdir(store.folder)))
    return tally


def small_disk(folder: Path, number: int) -> Tally:
    """Save runs of pytest to a real file system of 64 KiB, long after it is full; needs the right to mount one."""
    tally = Tally("a file system of 64 KiB, filled")
    place = project(folder / "small")
    disk = place / "kept"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        tally.count("not tried: no right to mount", 1)
        return tally
    whole: dict[str, bytes] = {}
    try:
        for _ in range(number):
            code = ended(
                forked(
                    lambda: run_pytest(place, "--energy-autosave", "--energy-storage=kept"),
                    folder / "small.log",
                )
            )
            tally.tried += 1
            tally.count(
                {0: "stored", 3: "told that they are not stored", 4: "refused before they began"}.get(
                    code, "else"
                )
            )
            _look(Store(disk), whole, tally)
        tally.lost += tally.notes.get("stored", 0) != len(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    text = (folder / "small.log").read_text(errors="replace")
    tally.tracebacks = text.count("Traceback (most recent call last)") + text.count("INTERNALERROR>")
    return tally


def read_only(folder: Path) -> Tally:
    """Run pytest and the commands where nothing can be written."""
    tally = Tally("read-only store and folders")
    place = project(folder / "frozen")
    ended(
        forked(lambda: run_pytest(place, "--energy-autosave", "--energy-storage=kept"), folder / "frozen.log")
    )
    before = {path: path.read_bytes() for path in (place / "kept" / "runs").iterdir()}
    for path in (place / "kept" / "runs", place / "kept", place):
        path.chmod(0o555)
    for path in (folder, *folder.parents):
        if path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o555)
    log = folder / "frozen2.log"
    log.touch()
    log.chmod(0o666)

    def as_nobody(work: Callable[[], int]) -> Callable[[], int]:
        def dropped() -> int:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            return work()

        return dropped

    jobs: tuple[tuple[Callable[[], int], int], ...] = (
        (lambda: run_pytest(place, "--energy-autosave", "--energy-storage=kept"), 4),
        (lambda: run_pytest(place, f"--energy-json={place}/x.json"), 3),
        (lambda: run_pytest(place, f"--energy-record={place}/x.jsonl"), 4),
        (lambda: run_pytest(place, "--energy-storage=kept", f"--energy-baseline=path:{place}/kept"), 0),
        (lambda: cli.main(["list", f"--storage={place}/kept"]), 0),
        (lambda: cli.main(["show", f"--storage={place}/kept"]), 0),
        (lambda: cli.main(["prune", f"--storage={place}/kept", "--keep=0"]), -1),
    )
    for job, expected in jobs:
        code = ended(forked(as_nobody(job), log))
        tally.tried += 1
        if expected >= 0 and code != expected:
            tally.count(f"exit status {code} for {expected}")
    text = log.read_text(errors="replace")
    tally.tracebacks = text.count("Traceback (most recent call last)") + text.count("INTERNALERROR>")
    place.chmod(0o755)
    (place / "kept").chmod(0o755)
    (place / "kept" / "runs").chmod(0o755)
    after = {path: path.read_bytes() for path in (place / "kept" / "runs").iterdir()}
    tally.lost = len(before.keys() - after.keys())
    tally.silent = sum(after.get(path, data) != data for path, data in before.items())
    return tally


def pushers(folder: Path, number: int, each: int = 5) -> Tally:
    """Let clones push their stores to one remote at the same time, and pull it all."""
    tally = Tally(f"{number} pushers of {each} runs each, at once", tried=number)

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], check=True, capture_output=True)

    origin = folder / "origin.git"
    git("init", "--quiet", "--bare", str(origin))
    clones = []
    for at in range(number):
        clone = folder / f"clone{at}"
        git("clone", "--quiet", str(origin), str(clone))
        for place in range(each):
            Store(clone / ".git" / "tokenpower").write(run_record(at * each + place, rounds=4))
        clones.append(clone)

    def work(clone: Path, command: str) -> int:
        os.chdir(clone)
        return cli.main([command])

    pids = [forked(lambda clone=clone: work(clone, "push"), folder / "push.log") for clone in clones]  # type: ignore[misc]
    refused = sum(ended(pid) != 0 for pid in pids)
    tally.count("refused", refused)
    reader = folder / "reader"
    git("clone", "--quiet", str(origin), str(reader))
    tally.tracebacks += ended(forked(lambda: work(reader, "pull"), folder / "push.log")) != 0
    text = (folder / "push.log").read_text(errors="replace")
    tally.tracebacks += text.count("Traceback (most recent call last)") + text.count("unexpected ")
    store = Store(reader / ".git" / "tokenpower")
    found = {run.id: run for run in map(store.load, store.entries())}
    for at in range(number * each):
        run = run_record(at, rounds=4)
        tally.silent += run.id in found and found[run.id] != run
    tally.lost = (number - refused) * each - len(found)
    tally.count("runs pulled", len(found))
    return tally


def warm_up(folder: Path) -> None:
    """Import in this process what its forks would import one by one."""
    place = project(folder / "warm")
    here = os.getcwd()
    with contextlib.redirect_stdout(io.StringIO()):
        run_pytest(place, "--energy-autosave", "--energy-storage=kept", "--energy-baseline=path:kept")
    os.chdir(here)
    for name in ("test_e", "conftest"):
        sys.modules.pop(name, None)


def table(tallies: list[Tally]) -> str:
    """Lay out the figures as Markdown."""
    rows = [
        "| part | tried | lost | torn | changed in silence | tracebacks | also |",
        "| --- |" + " ---: |" * 5 + " --- |",
    ]
    for one in tallies:
        also = ", ".join(f"{much} {note}" for note, much in one.notes.items())
        rows.append(
            f"| {one.part} | {one.tried} | {one.lost} | {one.torn} | {one.silent} | {one.tracebacks} | {also} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--corruptions", type=int, default=2000)
    parser.add_argument("--full", type=int, default=200)
    parser.add_argument("--small", type=int, default=40)
    parser.add_argument("--pushers", type=int, default=20)
    asked = parser.parse_args()
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="tokenpower-campaign-") as name:
        folder = Path(name)
        os.environ["HOME"] = name
        warm_up(folder)
        parts: tuple[Callable[[], Tally], ...] = (
            lambda: writers(folder, asked.writers, asked.each),
            lambda: corruptions(folder, asked.corruptions),
            lambda: full_disk(folder, asked.full),
            lambda: small_disk(folder, asked.small),
            lambda: read_only(folder),
            lambda: pushers(folder, asked.pushers),
            lambda: kills(folder, asked.kills),
        )
        for part in parts:
            began = time.monotonic()
            tallies.append(part())
            print(f"{tallies[-1]} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(tallies))
    return int(any(one.bad for one in tallies))


if __name__ == "__main__":
    sys.exit(main())
