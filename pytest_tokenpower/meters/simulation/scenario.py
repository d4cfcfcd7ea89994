"""What a simulation plays: boards, their power over time, and faults on demand; read from a JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import pynvml

from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.simulation.power_curve import PowerCurve

Limit = Literal["power", "thermal", "board", "sw_thermal", "hw_thermal", "power_brake"]

FaultKind = Literal[
    "error",
    "hang",
    "zero",
    "freeze",
    "counter_reset",
    "counter_back",
    "counter_scale",
    "slow_ring",
    "ring_gap",
    "lost",
    "clock_step",
    "throttle",
    "process",
]

_DETAILS: Mapping[str, frozenset[str]] = {
    "error": frozenset({"call", "error", "field", "nth", "board"}),
    "hang": frozenset({"call", "seconds", "nth", "board"}),
    "zero": frozenset({"call", "field", "nth", "board"}),
    "freeze": frozenset({"what", "watts", "board"}),
    "counter_reset": frozenset({"board"}),
    "counter_back": frozenset({"millijoules", "board"}),
    "counter_scale": frozenset({"factor", "board"}),
    "slow_ring": frozenset({"board"}),
    "ring_gap": frozenset({"board"}),
    "lost": frozenset({"board"}),
    "clock_step": frozenset({"seconds"}),
    "throttle": frozenset({"limit", "share", "board"}),
    "process": frozenset({"pid", "memory_bytes", "board"}),
}

_ALWAYS = frozenset({"kind", "from_s", "until_s"})

_ONCE = frozenset({"counter_reset", "counter_back"})


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that goes wrong, from ``from_s`` until ``until_s`` (seconds since the boards' start).

    Without ``from_s`` it holds from the start, or from now when it is injected at run time; without ``until_s``
    it stays. ``board`` is an index or a UUID; None means all of them and the calls that name none.

    - ``error``: ``call`` ("*": any) returns ``error``, a name such as "GPU_IS_LOST" or a code; with ``field`` only
      that field of nvmlDeviceGetFieldValues does. ``nth`` limits it to the n-th such call, counted from 1.
    - ``hang``: the call waits for ``seconds``, then answers. ``zero``: it succeeds and every number in it is zero.
    - ``freeze``: ``what`` (ring, counter, power) keeps its last value, or shows ``watts``, while time goes on.
    - ``counter_reset``: the counter starts again from zero. ``counter_back``: it loses ``millijoules``.
      ``counter_scale``: it grows ``factor`` times as fast as the energy.
    - ``slow_ring``: one sample a second. ``ring_gap``: samples go missing.
    - ``lost``: every call on the board gives GPU_IS_LOST. ``clock_step``: realtime jumps by ``seconds``.
    - ``throttle``: ``limit`` holds the clocks down for ``share`` of the time.
    - ``process``: a compute process ``pid`` with ``memory_bytes`` is on the board.
    """

    kind: FaultKind
    from_s: float | None = None
    until_s: float | None = None
    board: int | str | None = None
    call: str = "*"
    nth: int | None = None
    error: int | str = "UNKNOWN"
    field: int | None = None
    seconds: float = 1.0
    what: Literal["ring", "counter", "power"] = "ring"
    watts: float | None = None
    millijoules: int = 1000
    factor: float = 2.0
    limit: Limit = "thermal"
    share: float = 1.0
    pid: int = 1
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for info in msgspec.structs.fields(self):
            used = info.name in _DETAILS[self.kind] or info.name in _ALWAYS
            if not used and getattr(self, info.name) != info.default:
                raise ValueError(f"{info.name}: a fault of kind {self.kind!r} has no such detail")
        _error_code(self.error)
        if self.call != "*" and not (
            self.call.startswith("nvml") and callable(getattr(pynvml, self.call, None))
        ):
            raise ValueError(f"call: pynvml has no {self.call!r}")
        if self.field is not None and self.call != "nvmlDeviceGetFieldValues":
            raise ValueError('field: goes with the call "nvmlDeviceGetFieldValues" only')
        if self.nth is not None and self.nth < 1:
            raise ValueError(f"nth: must be at least 1, not {self.nth}")
        if self.until_s is not None and self.kind in _ONCE:
            raise ValueError(f"until_s: a fault of kind {self.kind!r} happens at one moment")
        if self.until_s is not None and self.until_s < (self.from_s or 0):
            raise ValueError("until_s: must not be before from_s")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: must be between 0 and 1, not {self.share:g}")
        if self.kind == "hang" and self.seconds < 0:
            raise ValueError(f"seconds: must be at least 0, not {self.seconds:g}")

    @property
    def error_code(self) -> int:
        """The number of ``error`` (NVML_ERROR_…)."""
        return _error_code(self.error)


def _error_code(error: int | str) -> int:
    if isinstance(error, int):
        return error
    code = getattr(pynvml, "NVML_ERROR_" + error.removeprefix("NVML_ERROR_"), None)
    if not isinstance(code, int):
        raise ValueError(f"error: pynvml has no NVML_ERROR_{error.removeprefix('NVML_ERROR_')}")
    return code


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A compute process on a board; ``pid`` "own" is the process that asks."""

    pid: int | Literal["own"] = "own"
    memory_bytes: int = 1 << 30


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One board: who it is, what it draws, and which of a board's readings it has.

    ``ring_scale`` is the ring's integral over the counter's, which counts the exact energy; ``ring_noise_share``
    is the standard deviation of one sample as a share of its power. ``average_s`` is what nvmlDeviceGetPowerUsage
    averages over (0: instantaneous, as on GA100), ``refresh_s`` how often the polled powers and the counter change.
    ``module_extra_watts`` gives a Grace Hopper module scope: the GPU's power and this; the counter then counts the
    module, as a GH200's does, unless ``counter_of_module`` is false. The temperature follows the
    power as a first-order lag, unless ``temperature_points`` (second, degrees Celsius) say otherwise; likewise
    ``sm_clock_points``. With ``slow_ring_at_idle`` a second below ``idle_watts`` has one sample.
    """

    uuid: str = "GPU-51000000-0000-0000-0000-000000000000"
    name: str = "Simulated H100 80GB"
    power: PowerCurve = PowerCurve()
    memory_bytes: int = 85_520_809_984
    power_limit_watts: float = 700.0
    power_limit_range_watts: tuple[float, float] = (200.0, 700.0)
    compute_capability: tuple[int, int] = (9, 0)
    persistence_mode: bool = True
    processes: tuple[Process, ...] = ()

    ring: bool = True
    counter: bool = True
    instant: bool = True
    mig: Literal["unsupported", "off", "on"] = "off"
    mig_slices: int = 2
    module_extra_watts: float | None = None
    counter_of_module: bool = True
    memory_power_share: float | None = None
    slow_ring_at_idle: bool = False
    idle_watts: float = 100.0

    ring_scale: float = 1.0005
    ring_noise_share: float = 0.0
    counter_start_joules: float = 1000.0
    refresh_s: float = 0.1
    average_s: float = 1.0

    ambient_celsius: float = 30.0
    celsius_per_watt: float = 0.06
    thermal_lag_s: float = 15.0
    temperature_points: tuple[tuple[float, float], ...] | None = None
    sm_clock_mhz: int = 1980
    sm_clock_points: tuple[tuple[float, float], ...] | None = None
    memory_clock_mhz: int = 2619

    def __post_init__(self) -> None:
        for name in ("ring_scale", "refresh_s", "thermal_lag_s", "power_limit_watts", "memory_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name):g}")
        for name in ("temperature_points", "sm_clock_points"):
            points = getattr(self, name)
            if points is not None and (not points or list(points) != sorted(points, key=lambda p: p[0])):
                raise ValueError(f"{name}: needs at least one (second, value), in the order of time")


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Boards and faults. ``seed`` fixes the ring's jitter and noise: the same scenario gives the same readings.

    On the ``clock`` "virtual" time passes only while a workload sleeps on it (see ``virtual_time``): no machine is too
    busy for it, and nobody waits.
    """

    boards: tuple[Board, ...] = (Board(),)
    faults: tuple[Fault, ...] = ()
    driver: str = "580.159.03 (simulated)"
    nvml: str = "13.580.159.03 (simulated)"
    seed: int = 0
    clock: Literal["machine", "virtual"] = "machine"

    def __post_init__(self) -> None:
        uuids = [board.uuid for board in self.boards]
        doubled = sorted({uuid for uuid in uuids if uuids.count(uuid) > 1})
        if doubled:
            raise ValueError(f"boards: uuid {doubled[0]!r} is given twice")
        for fault in self.faults:
            self.board_index(fault.board)

    def board_index(self, board: int | str | None) -> int | None:
        """Return the index of a board given by index or UUID; raises ValueError when there is none."""
        if board is None:
            return None
        for index, known in enumerate(self.boards):
            if board in (index, known.uuid):
                return index
        raise ValueError(f"board: there is no {board!r} among {len(self.boards)} boards")


def numbered_boards(count: int, board: Board | None = None) -> tuple[Board, ...]:
    """``count`` boards like ``board``, with UUIDs GPU-51000000-…, GPU-51000001-… and so on."""
    template = board or Board()
    return tuple(
        msgspec.structs.replace(template, uuid=f"GPU-51{index:06x}-0000-0000-0000-000000000000")
        for index in range(count)
    )


def load_scenario(path: str | Path) -> Scenario:
    """Return a scenario from a JSON file; raises UsageError that names the file and the field that is wrong."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"simulated board: cannot read the scenario {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(text, type=Scenario)
    except msgspec.ValidationError as error:
        complaint = re.sub(r" - at `\$\.?(.*)`$", r" (at \1)", str(error))
        raise UsageError(f"simulated board: {path}: {complaint}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"simulated board: {path} is not JSON: {error}") from error
