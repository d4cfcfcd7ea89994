"""The driver's own ring of power samples of an NVIDIA board, through NVML: each sample once, on the monotonic clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from pytest_tokenpower.errors import MeterError, MeterLost
from pytest_tokenpower.meters.clock import STEP_NS, Clock
from pytest_tokenpower.meters.types import PowerSamples

NO_POWER = 0x7FFFFFFF
"""From here on a sample in milliwatts is no power but a value that was never written (NVML_VALUE_NOT_AVAILABLE)."""


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
        self._unplaceable: frozenset[int] = frozenset()

    def since(self, after_us: int) -> list[tuple[int, int]]:
        """(realtime in us, milliwatts) of the samples that are stamped after a moment, in the ring's order."""
        nvml = self._nvml
        try:
            _, samples = nvml.nvmlDeviceGetSamples(self._handle, self._kind, after_us)
        except nvml.NVMLError_NotFound:
            # "No samples" since then.
            return []
        except nvml.NVMLError_GpuIsLost as error:
            raise MeterLost(f"{self._board}: nvmlDeviceGetSamples failed: {error}") from error
        except nvml.NVMLError as error:
            raise MeterError(f"{self._board}: nvmlDeviceGetSamples failed: {error}") from error
        return [(t_us, s.sampleValue.uiVal) for s in samples if (t_us := s.timeStamp) > after_us]

    def drain(self, clock: Clock) -> PowerSamples | None:
        """Return what is new since the last drain; None where nothing is, or where realtime was set in between."""
        offset_ns = clock.offset_ns
        stepped = self._offset_ns is not None and abs(offset_ns - self._offset_ns) > STEP_NS
        rows = [row for row in self.since(self._newest_us) if row[0] not in self._unplaceable]
        stamps = [t_us for t_us, _ in rows]
        # Set forth and back between two drains, realtime shows only in stamps that are out of order or yet to come.
        now_us = (clock.monotonic_ns() + offset_ns) // 1000
        odd = any(later < earlier for earlier, later in pairwise(stamps)) or max(stamps, default=0) > now_us
        if stepped or odd:
            self._unplaceable = frozenset(t_us for t_us, _ in self.since(0))
            self._newest_us = 0
        # Only now: a call that failed above has left the step to the next drain.
        self._offset_ns = offset_ns
        if stepped:
            return None
        if odd:
            raise MeterError(
                f"{self._board}: the stamps of the power ring are out of order or ahead of the clock: realtime was set"
            )
        if not rows:
            return None
        self._newest_us = stamps[-1]
        columns = np.array(rows, dtype=np.int64)
        milliwatts = columns[:, 1]
        if milliwatts.min() <= 0 or milliwatts.max() >= NO_POWER:
            odd_watts = 0 if milliwatts.min() <= 0 else int(milliwatts.max()) // 1000
            raise MeterError(
                f"{self._board}: the power ring reads {odd_watts} W, which no powered board draws"
            )
        return PowerSamples(clock.from_realtime_us(columns[:, 0]), milliwatts)
