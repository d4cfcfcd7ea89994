"""What NVML's boards say of themselves, how often their readings change, and what each call costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal

import numpy as np

from pytest_tokenpower.meters.adapters.nvml.boards import text
from pytest_tokenpower.meters.processes import is_in_tree

COST_CALLS = 200

COST_S = 0.5
"""Each call is repeated this often, or for this long."""

_NEVER_AGAIN = ("nvmlInit", "nvmlInitWithFlags", "nvmlShutdown")
"""Calls that count their callers: they are not repeated."""


@dataclass(frozen=True)
class CallCost:
    """How long one call of NVML takes, back to back, on one board; ``error`` where it failed at last."""

    call: str
    count: int
    median_ns: float
    percentile99_ns: float
    error: str | None = None


class CallLog:
    """Stands before the `pynvml` module: remembers each function's last arguments, and the call that is under way."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.pending: str | None = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._library, name)
        if not name.startswith("nvml") or isinstance(value, (int, type)) or not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self.calls[name] = arguments
            self.pending = name
            try:
                return value(*arguments)
            finally:
                self.pending = None

        self.__dict__[name] = call
        return call


def call_costs(
    library: Any, calls: Mapping[str, tuple[Any, ...]], handle: Any, now_ns: Callable[[], int]
) -> tuple[CallCost, ...]:
    """Return the cost of each function of ``calls`` with its arguments; those that count their callers are left out.

    Calls on a device go to ``handle``: the one that they were made with ended with its nvmlShutdown.
    """
    return tuple(
        _cost(
            getattr(library, call),
            call,
            (handle, *arguments[1:]) if call.startswith("nvmlDevice") and arguments else arguments,
            now_ns,
        )
        for call, arguments in calls.items()
        if call not in _NEVER_AGAIN
    )


def _cost(
    function: Callable[..., Any], call: str, arguments: tuple[Any, ...], now_ns: Callable[[], int]
) -> CallCost:
    """Repeat a call, back to back; one that fails costs time too, and its last error is kept."""
    costs: list[int] = []
    error: str | None = None
    start_ns = now_ns()
    while len(costs) < COST_CALLS and now_ns() - start_ns < COST_S * 1e9:
        before_ns = now_ns()
        try:
            function(*arguments)
            error = None
        except Exception as failure:
            error = error_text(failure)
        costs.append(now_ns() - before_ns)
    return CallCost(call, len(costs), float(median(costs)), float(np.percentile(costs, 99)), error)


def error_text(error: BaseException) -> str:
    """Return what an error says, or its class where it says nothing."""
    return str(error) or type(error).__name__


REFRESH_S = 2.0
"""How long the refresh of a board's readings is watched: twenty ticks of a counter at 100 ms."""

READ_EVERY_S = 0.001

INIT_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of Linux: processes that are elsewhere do not see each other."""

REASONS = {
    "GpuIdle": "idle",
    "ApplicationsClocksSetting": "applications clocks",
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SyncBoost": "sync boost",
    "SwThermalSlowdown": "thermal slowdown (software)",
    "HwThermalSlowdown": "thermal slowdown (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "DisplayClockSetting": "display clocks",
    "UserDefinedClocks": "clocks set by a user",
}
"""NVML's clocks event reasons (nvmlClocksEventReason…) in words."""

Owner = Literal["own", "foreign", "unknown"]


@dataclass(frozen=True)
class Refresh:
    """How often a reading changes: ``period_ns`` is None where fewer than three changes were seen in ``watched_ns``."""

    reads: int
    changes: int
    watched_ns: int
    period_ns: float | None


@dataclass(frozen=True)
class GpuProcess:
    """A compute process on a board; "unknown" is a pid of another PID namespace, whosever it is."""

    pid: int
    owner: Owner


@dataclass(frozen=True)
class BoardFacts:
    """The state of one board; what it does not tell is None, and ``unread`` says why.

    ``ring_kept`` samples over ``ring_span_ns`` are what the ring holds. ``refresh`` knows "counter", "usage"
    (nvmlDeviceGetPowerUsage), "instant" and "average" (fields 186 and 185), as far as the board has them.
    """

    device_id: str
    ring_kept: int | None = None
    ring_span_ns: int | None = None
    refresh: Mapping[str, Refresh] = field(default_factory=dict)
    mig: bool | None = None
    persistence: bool | None = None
    limit_watts: float | None = None
    default_limit_watts: float | None = None
    watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    utilisation: float | None = None
    reasons: tuple[str, ...] | None = None
    processes: tuple[GpuProcess, ...] | None = None
    processes_hidden: bool = False
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether the board says that it has nothing to do."""
        return self.utilisation == 0 or "idle" in (self.reasons or ())


def inspect_boards(
    library: Any,
    device_ids: Sequence[str],
    calls: Mapping[str, tuple[Any, ...]],
    *,
    now_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[tuple[BoardFacts, ...], tuple[CallCost, ...], tuple[str, ...]]:
    """Facts of the boards named, the cost of the ``calls`` (function and arguments), and remarks on what failed.

    Never raises: a call that fails is named in the facts or the remarks.
    """
    try:
        library.nvmlInit()
    except Exception as error:
        return (), (), (f"the boards could not be asked again: nvmlInit: {error_text(error)}",)
    try:
        handles = _handles(library, device_ids)
        facts = {device_id: _facts(library, device_id, handle) for device_id, handle in handles.items()}
        refresh = _watch(library, handles, now_ns, sleep)
        boards = tuple(replace(facts[device_id], refresh=refresh[device_id]) for device_id in handles)
        first = next(iter(handles.values()), None)
        costs = () if first is None else call_costs(library, calls, first, now_ns)
        return boards, costs, ()
    except Exception as error:
        return (), (), (f"the boards could not be asked again: {error_text(error)}",)
    finally:
        # Gone with the driver: the facts and remarks say so already.
        with suppress(Exception):
            library.nvmlShutdown()


def _handles(library: Any, device_ids: Sequence[str]) -> dict[str, Any]:
    handles = {}
    for index in range(library.nvmlDeviceGetCount()):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            uuid = text(library.nvmlDeviceGetUUID(handle))
        except library.NVMLError:
            # A board of no concern, or lost: then its own readings say so.
            continue
        if uuid in device_ids:
            handles[uuid] = handle
    return handles


class _Asker:
    """Asks a board; what fails is None and goes into ``unread`` with the reason."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self.unread: dict[str, str] = {}

    def __call__(self, call: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, call)(self._handle, *arguments)
        except Exception as error:
            self.unread[call] = error_text(error)
            return None


def _facts(library: Any, device_id: str, handle: Any) -> BoardFacts:
    ask = _Asker(library, handle)
    kept, span_ns = None, None
    samples = ask("nvmlDeviceGetSamples", library.NVML_TOTAL_POWER_SAMPLES, 0)
    if samples is not None:
        stamps = [sample.timeStamp for sample in samples[1] if sample.timeStamp > 0]
        kept = len(stamps)
        span_ns = 1000 * (stamps[-1] - stamps[0]) if stamps else 0
    mig = ask("nvmlDeviceGetMigMode")
    persistence = ask("nvmlDeviceGetPersistenceMode")
    temperature = ask("nvmlDeviceGetTemperatureV", library.NVML_TEMPERATURE_GPU)
    if temperature is None:
        temperature = ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU)
    mask = ask("nvmlDeviceGetCurrentClocksEventReasons")
    utilisation = ask("nvmlDeviceGetUtilizationRates")
    processes = ask("nvmlDeviceGetComputeRunningProcesses")
    return BoardFacts(
        device_id=device_id,
        ring_kept=kept,
        ring_span_ns=span_ns,
        mig=None if mig is None else bool(mig[0]),
        persistence=None if persistence is None else bool(persistence),
        limit_watts=_watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
        default_limit_watts=_watts(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        watts=_watts(ask("nvmlDeviceGetPowerUsage")),
        temperature_celsius=temperature,
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_MEM),
        utilisation=None if utilisation is None else float(utilisation.gpu),
        reasons=None if mask is None else _reasons(library, mask),
        processes=None if processes is None else tuple(_process(process.pid) for process in processes),
        processes_hidden=_in_container(),
        unread=ask.unread,
    )


def _reasons(library: Any, mask: int) -> tuple[str, ...]:
    known = {getattr(library, f"nvmlClocksEventReason{name}", 0): text for name, text in REASONS.items()}
    found = [text for bit, text in known.items() if mask & bit]
    rest = mask & ~sum(known)
    return (*found, *([f"reason {rest:#x}"] if rest else ()))


def _process(pid: int) -> GpuProcess:
    ours = is_in_tree(pid)
    return GpuProcess(pid, "unknown" if ours is None else "own" if ours else "foreign")


def _in_container() -> bool:
    """Whether this process has a PID namespace of its own, so that others' processes may be hidden from it."""
    try:
        return os.readlink("/proc/self/ns/pid") != INIT_PID_NAMESPACE
    except OSError:
        return False


def _watch(
    library: Any,
    handles: Mapping[str, Any],
    now_ns: Callable[[], int],
    sleep: Callable[[float], object],
) -> dict[str, dict[str, Refresh]]:
    """Read everything that changes in steps, as fast as it goes, and note the times of its changes."""
    seen: dict[str, dict[str, list[tuple[int, int]]]] = {device_id: {} for device_id in handles}
    reads: dict[str, dict[str, int]] = {device_id: {} for device_id in handles}
    gone: set[tuple[str, str]] = set()
    start_ns = now_ns()
    while now_ns() - start_ns < REFRESH_S * 1e9:
        for device_id, handle in handles.items():
            for name, read in _READERS.items():
                if (device_id, name) in gone:
                    continue
                before_ns = now_ns()
                try:
                    value = read(library, handle)
                except Exception:
                    value = None
                if value is None:
                    gone.add((device_id, name))
                    continue
                changes = seen[device_id].setdefault(name, [])
                reads[device_id][name] = reads[device_id].get(name, 0) + 1
                if not changes or changes[-1][1] != value:
                    changes.append((before_ns, value))
        sleep(READ_EVERY_S)
    watched_ns = now_ns() - start_ns
    return {
        device_id: {
            name: _refresh([at for at, _ in changes], reads[device_id][name], watched_ns)
            for name, changes in of_board.items()
            if (device_id, name) not in gone
        }
        for device_id, of_board in seen.items()
    }


def _refresh(times_ns: Sequence[int], reads: int, watched_ns: int) -> Refresh:
    # The first entry is the value that was found, not a change.
    changes = times_ns[1:]
    period_ns = median(np.diff(changes).tolist()) if len(changes) > 2 else None
    return Refresh(reads, len(changes), watched_ns, period_ns)


def _field(library: Any, handle: Any, number: int) -> int | None:
    [value] = library.nvmlDeviceGetFieldValues(handle, [number])
    return int(value.value.uiVal) if value.nvmlReturn == library.NVML_SUCCESS else None


_READERS: Mapping[str, Callable[[Any, Any], int | None]] = {
    "counter": lambda library, handle: library.nvmlDeviceGetTotalEnergyConsumption(handle),
    "usage": lambda library, handle: library.nvmlDeviceGetPowerUsage(handle),
    "instant": lambda library, handle: _field(library, handle, library.NVML_FI_DEV_POWER_INSTANT),
    "average": lambda library, handle: _field(library, handle, library.NVML_FI_DEV_POWER_AVERAGE),
}


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
