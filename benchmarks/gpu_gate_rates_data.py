"""What benchmarks/gpu_gate_rates.py has measured: packed small enough for the repository, and read back. Pure.

Packed, a process has its board, its waste, and its measurements; a round's numbers are columns, at six digits.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLUMNS = ("seconds", "joules", "stderr_joules", "temperature_celsius", "sm_clock_mhz", "peak_watts")
COUNTS = ("prompt_tokens", "generated_tokens", "responses", "repeats")
PHASE = ("joules", "stderr_joules", "seconds")
LIMITS = "limited_shares"


def pack(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what ``run`` has written into each of the folders, one hold of the machine each."""
    holds = []
    for folder in folders:
        machine = json.loads((folder / "machine.json").read_text())
        boards = []
        for board in machine["boards"]:
            processes = list(_processes(folder / f"board-{board['index']}.tar"))
            first = json.loads(processes[0]["record.json"])
            early = [
                json.loads(each.get("times.json", "{}")).get("cuda before the turn") for each in processes
            ]
            boards.append(
                {
                    **board,
                    "facts": first["measurements"][0]["facts"],
                    "versions": first["versions"],
                    "processes": [
                        # The next process is the one that may have touched the board meanwhile.
                        _packed(each, machine, bool(following))
                        for each, following in zip(processes, [*early[1:], None], strict=True)
                    ],
                }
            )
        holds.append(
            {
                **{name: machine[name] for name in ("at", "seed", "seconds", "cpus")},
                # Where on its machine a run wrote to says nothing of it.
                "argv": [Path(each).name if each.startswith("/") else each for each in machine["argv"]],
                "smi": [line.strip() for line in machine["smi"].splitlines() if "Driver Version" in line],
                "boards": boards,
            }
        )
    return {"holds": holds}


def _processes(path: Path) -> Iterator[dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            _, process, name = member.name.split("/")
            file = tar.extractfile(member)
            assert file is not None
            found.setdefault(process, {})[name.removesuffix(".gz")] = gzip.decompress(file.read()).decode()
    yield from sorted(found.values(), key=lambda each: json.loads(each["spec.json"])["number"])


def _packed(files: Mapping[str, str], machine: Mapping[str, Any], disturbed: bool) -> dict[str, Any]:
    spec, record = json.loads(files["spec.json"]), json.loads(files["record.json"])
    times = json.loads(files.get("times.json", "{}"))
    return {
        **{name: spec[name] for name in ("number", "kind", "waste", "seconds", "at")},
        "start_seconds": round(times["engine"] - times["turn"], 2) if "engine" in times else None,
        "load": [round(each, 2) for each in times.get("load", ())],
        "context_beside": disturbed,
        "created": record["created"],
        # A test that failed by itself may have measured nothing.
        "tests": [_packed_measurement(each) for each in record["measurements"] if each["rounds"]],
    }


def _packed_measurement(measured: Mapping[str, Any]) -> dict[str, Any]:
    rounds = measured["rounds"]
    packed: dict[str, Any] = {
        "test": measured["test"],
        "key": measured["key"],
        "method": measured["method"],
        "comparable": measured["comparable"],
        "start_ns": [each["start_ns"] for each in rounds],
        "reasons": [each.get("reasons", []) for each in rounds]
        if any(each.get("reasons") for each in rounds)
        else [],
    }
    for name in COLUMNS:
        packed[name] = [_short(each.get(name)) for each in rounds]
    for name in COUNTS:
        values = [each.get(name, 1) for each in rounds]
        packed[name] = values[0] if len(set(values)) == 1 else values
    limits = [{name: share for name, share in each.get(LIMITS, {}).items() if share} for each in rounds]
    if any(limits):
        packed[LIMITS] = [{name: _short(share) for name, share in each.items()} for each in limits]
    if all(each.get("phases") for each in rounds):
        packed["phases"] = {
            phase: {name: [_short(each["phases"][phase][name]) for each in rounds] for name in PHASE}
            for phase in rounds[0]["phases"]
        }
    return packed


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


@dataclass(frozen=True, eq=False)
class Run:
    """One test in one process: its rounds without those that a guard refused, each number a column."""

    hold: int
    board: str
    role: str
    process: int
    created: str
    test: str
    waste: Mapping[str, float]
    context_beside: bool
    comparable: bool
    joules: Floats
    errors: Floats
    seconds: Floats
    celsius: Floats
    tokens: Floats
    waiting_watts: float
    waiting_celsius: float
    packed: Mapping[str, Any]

    @property
    def identical(self) -> bool:
        """Without waste."""
        return not self.waste

    @property
    def name(self) -> str:
        """What its tests are called in tables."""
        return NAMES[self.test]

    def dearer(self, share: float) -> Run:
        """Return the run with so many more joules in every round."""
        more = 1 + share
        return replace(self, joules=self.joules * more, errors=self.errors * more) if share else self

    @cached_property
    def per_token(self) -> Floats:
        """J/token of each round."""
        return self.joules / self.tokens

    def active_per_token(self, watts: float | None = None) -> Floats:
        """J/token of each round without what the board draws when it waits: by its own windows, or as given."""
        waiting = self.waiting_watts if watts is None else watts
        return (self.joules - waiting * self.seconds) / self.tokens


NAMES = {
    "test_batch_4": "1B, batch 4, 32 new",
    "test_batch_32": "1B, batch 32, 32 new",
    "test_chat": "8B, batch 32, 256 + 64",
}
TESTS = tuple(NAMES)
PIECES = ("matmul", "gemms", "copy", "waiting_first", "waiting_hot")


@dataclass(frozen=True)
class Calibration:
    """What a piece of fixed work took on a board, as the mean of its windows."""

    hold: int
    board: str
    first: bool
    piece: str
    joules: float
    watts: float
    celsius: float


@dataclass(frozen=True)
class Waiting:
    """The windows of waiting of one process, before and after its tests."""

    hold: int
    board: str
    process: int
    context_beside: bool
    first_watts: float
    first_celsius: float
    last_watts: float
    last_celsius: float


@dataclass(frozen=True)
class Measured:
    """Everything, flat."""

    raw: Mapping[str, Any]
    runs: tuple[Run, ...]
    calibrations: tuple[Calibration, ...]
    waitings: tuple[Waiting, ...]
    processes: int

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Measured:
        """From what ``pack`` gives."""
        runs: list[Run] = []
        calibrations: list[Calibration] = []
        waitings: list[Waiting] = []
        processes = 0
        for number, hold in enumerate(raw["holds"], 1):
            for board in hold["boards"]:
                for process in board["processes"]:
                    tests = {each["test"].partition("::")[2]: each for each in process["tests"]}
                    if process["kind"] == "calibrate":
                        calibrations += _calibrations(number, board["uuid"], process, tests)
                        continue
                    processes += 1
                    waiting = _waiting(number, board["uuid"], process, tests)
                    waitings.append(waiting)
                    runs += [
                        _run(number, board, process, name, tests[name], waiting)
                        for name in TESTS
                        if name in tests
                    ]
        return cls(raw, tuple(runs), tuple(calibrations), tuple(waitings), processes)

    def of(self, test: str, *, identical: bool = True) -> list[Run]:
        """Return the comparable runs of a test, of identical code or with waste."""
        return [
            each
            for each in self.runs
            if each.test == test and each.comparable and each.identical == identical
        ]


def phase_sums(run: Run, phase: str) -> tuple[float, float]:
    """Joules and seconds of a phase, over all good rounds of a run."""
    good = _good(run.packed)
    columns = run.packed["phases"][phase]
    return tuple(float(np.asarray(columns[name], dtype=float)[good].sum()) for name in ("joules", "seconds"))  # type: ignore[return-value]


def executions(run: Run) -> list[int]:
    """How often the workload ran in each good round."""
    if not run.packed:
        return [1] * len(run.joules)
    return [round(each) for each in _column(run.packed, "repeats")]


def _good(packed: Mapping[str, Any]) -> NDArray[np.bool_]:
    reasons = packed["reasons"] or [[]] * len(packed["joules"])
    return np.array([not each for each in reasons])


def _column(packed: Mapping[str, Any], name: str) -> Floats:
    values = np.asarray(packed[name], dtype=float)
    values = np.full(len(packed["joules"]), values) if values.ndim == 0 else values
    found: Floats = values[_good(packed)]
    return found


def _run(
    hold: int,
    board: Mapping[str, Any],
    process: Mapping[str, Any],
    name: str,
    packed: Mapping[str, Any],
    waiting: Waiting,
) -> Run:
    return Run(
        hold=hold,
        board=board["uuid"],
        role=board["role"],
        process=process["number"],
        created=process["created"],
        test=name,
        waste=process["waste"].get(name, {}),
        context_beside=process["context_beside"],
        comparable=packed["comparable"],
        joules=_column(packed, "joules"),
        errors=_column(packed, "stderr_joules"),
        seconds=_column(packed, "seconds"),
        celsius=_column(packed, "temperature_celsius"),
        tokens=_column(packed, "generated_tokens"),
        waiting_watts=(waiting.first_watts + waiting.last_watts) / 2,
        waiting_celsius=(waiting.first_celsius + waiting.last_celsius) / 2,
        packed=packed,
    )


def _watts(packed: Mapping[str, Any]) -> float:
    return float(_column(packed, "joules").sum() / _column(packed, "seconds").sum())


def _waiting(hold: int, uuid: str, process: Mapping[str, Any], tests: Mapping[str, Any]) -> Waiting:
    first, last = tests["test_waiting_first"], tests["test_waiting_last"]
    return Waiting(
        hold=hold,
        board=uuid,
        process=process["number"],
        context_beside=process["context_beside"],
        first_watts=_watts(first),
        first_celsius=float(_column(first, "temperature_celsius").mean()),
        last_watts=_watts(last),
        last_celsius=float(_column(last, "temperature_celsius").mean()),
    )


def _calibrations(
    hold: int, uuid: str, process: Mapping[str, Any], tests: Mapping[str, Any]
) -> Iterator[Calibration]:
    for piece in PIECES:
        packed = tests[f"test_{piece}"]
        per_piece = _column(packed, "joules") / _column(packed, "generated_tokens")
        yield Calibration(
            hold,
            uuid,
            process["number"] == 0,
            piece,
            float(per_piece.mean()),
            _watts(packed),
            float(_column(packed, "temperature_celsius").mean()),
        )
