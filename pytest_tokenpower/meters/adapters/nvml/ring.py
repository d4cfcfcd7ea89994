"""The driver's own ring of power samples of an NVIDIA board, through NVML: each sample once, on the monotonic clock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_tokenpower.errors import MeterError, MeterLost
from pytest_tokenpower.meters.clock import STEP_NS, Clock
from pytest_tokenpower.meters.types import PowerSamples

NO_POWER = 0x7FFFFFFF
"""From here on a sample in milliwatts is no power but a value that was never written (NVML_VALUE_NOT_AVAILABLE)."""


_SAMPLE = np.dtype(
    {"names": ["t_us", "milliwatts"], "formats": ["u8", "u4"], "offsets": [0, 8], "itemsize": 16}
)
"""An nvmlSample_t whose value is an unsigned int: read at once, as a read of each costs what the driver's own does."""

_Rows = NDArray[np.int64]


class PowerRing:
    """The ring of one board (nvmlDeviceGetSamples, NVML_TOTAL_POWER_SAMPLES), or of its module; raises MeterError.

    Its stamps are realtime. Where realtime was set, no stamp tells on which side of the step its sample lies: what
    the ring holds then is left out, also later, when those samples may seem newer than those after a step back.
    """

    def __init__(self, nvml: Any, handle: Any, board: str, kind: int | None = None) -> None:
        self._nvml = nvml
        self._handle = handle
        self._board = board
        self._kind: int = nvml.NVML_TOTAL_POWER_SAMPLES if kind is None else kind
        self._newest_us = 0
        self._offset_ns: int | None = None
        self._unplaceable: _Rows | None = None

    def since(self, after_us: int) -> _Rows:
        """Rows of realtime (us) and milliwatts of the samples stamped after a moment, in the ring's order."""
        nvml = self._nvml
        try:
            _, samples = nvml.nvmlDeviceGetSamples(self._handle, self._kind, after_us)
        except nvml.NVMLError_NotFound:
            # "No samples" since then.
            samples = []
        except nvml.NVMLError_GpuIsLost as error:
            raise MeterLost(f"{self._board}: nvmlDeviceGetSamples failed: {error}") from error
        except nvml.NVMLError as error:
            raise MeterError(f"{self._board}: nvmlDeviceGetSamples failed: {error}") from error
        read = np.frombuffer(b"".join(samples), _SAMPLE)
        rows = np.stack([read["t_us"], read["milliwatts"]], axis=1).astype(np.int64)
        return rows[rows[:, 0] > after_us]

    def drain(self, clock: Clock) -> PowerSamples | None:
        """Return what is new since the last drain; None where nothing is, or where realtime was set in between."""
        offset_ns = clock.offset_ns
        stepped = self._offset_ns is not None and abs(offset_ns - self._offset_ns) > STEP_NS
        rows = self.since(self._newest_us)
        if self._unplaceable is not None:
            rows = rows[~np.isin(rows[:, 0], self._unplaceable)]
        stamps = rows[:, 0]
        # Set forth and back between two drains, realtime shows only in stamps that are out of order or yet to come.
        now_us = (clock.monotonic_ns() + offset_ns) // 1000
        odd = bool(np.any(np.diff(stamps) < 0)) or stamps.max(initial=0) > now_us
        if stepped or odd:
            self._unplaceable = self.since(0)[:, 0]
            self._newest_us = 0
        # Only now: a call that failed above has left the step to the next drain.
        self._offset_ns = offset_ns
        if stepped:
            return None
        if odd:
            raise MeterError(
                f"{self._board}: the stamps of the power ring are out of order or ahead of the clock: realtime was set"
            )
        if not len(rows):
            return None
        self._newest_us = int(stamps[-1])
        milliwatts = rows[:, 1]
        if milliwatts.min() <= 0 or milliwatts.max() >= NO_POWER:
            odd_watts = 0 if milliwatts.min() <= 0 else int(milliwatts.max()) // 1000
            raise MeterError(
                f"{self._board}: the power ring reads {odd_watts} W, which no powered board draws"
            )
        return PowerSamples(clock.from_realtime_us(stamps), milliwatts)
