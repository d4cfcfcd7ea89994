"""Calibrating a board: fixed work and waiting, measured for some seconds each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pytest_tokenpower.analysis.rounds import evaluate, flagged_too_often, good
from pytest_tokenpower.core.records import Figure, RoundRecord, WaitingRecord
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import RoundWindow
from pytest_tokenpower.errors import MeterError
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.runner.telemetry import AFTER_NS, TelemetrySession
from pytest_tokenpower.stats.boards import MATMUL, MEMORY
from pytest_tokenpower.stats.pace import measured_waiting
from pytest_tokenpower.store.calibrations import CalibrationRecord

WINDOWS = 6
WINDOW_SECONDS = 1.0
WARMUP_SECONDS = 1.0

Work = Callable[[int], None]
"""Runs a piece so many times, and returns when the board has done it."""


def calibrate(
    telemetry: TelemetrySession, device: Device, works: Mapping[str, Work], window_s: float = WINDOW_SECONDS
) -> CalibrationRecord:
    """Measure what waiting and each piece of fixed work draw on one board.

    Args:
        telemetry: the running meters.
        device: the board.
        works: the pieces by name (stats.boards).
        window_s: how long a window is, roughly.

    Raises:
        MeterError: the windows could not be measured.
    """
    waited = _measured(
        telemetry, device, [_window(lambda times: time.sleep(window_s), 1) for _ in range(WINDOWS)]
    )
    pieces = {}
    for name, work in works.items():
        times = _times(work, window_s)
        rounds = _measured(telemetry, device, [_window(work, times) for _ in range(WINDOWS)])
        values = [(one.joules or 0.0) / one.repeats for one in rounds]
        pieces[name] = Figure(
            statistics.fmean(values),
            statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0,
        )
    celsius = [one.temperature_celsius for one in waited if one.temperature_celsius is not None]
    waiting = measured_waiting(
        [(one.joules or 0.0) / one.seconds for one in waited],
        celsius if len(celsius) == len(waited) else None,
    )
    return CalibrationRecord(
        device=device.id,
        name=device.name,
        driver=str(device.facts.get("driver", "")),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        pieces=pieces,
        waiting=WaitingRecord(waiting.watts, waiting.stderr, waiting.celsius),
    )


def _times(work: Work, window_s: float) -> int:
    """How many pieces make a window; brings the board to its usual temperature on the way."""
    done, began = 0, time.monotonic()
    while time.monotonic() - began < WARMUP_SECONDS * window_s:
        work(1)
        done += 1
    return max(1, round(done * window_s / (time.monotonic() - began)))


def _window(work: Work, times: int) -> RoundWindow:
    start_ns = time.monotonic_ns()
    work(times)
    return RoundWindow(start_ns, time.monotonic_ns(), TokenCount(prompt=0, generated=times), repeats=times)


def _measured(
    telemetry: TelemetrySession, device: Device, windows: Sequence[RoundWindow]
) -> list[RoundRecord]:
    telemetry.collector.flush(windows[-1].end_ns + AFTER_NS, devices=[device])
    records = evaluate(telemetry.collector.timeline, [device], windows).records
    if reasons := flagged_too_often(records, 2):
        raise MeterError(f"{device.id}: not calibrated: {'; '.join(reasons)}")
    return [each.record for each in good(records)]


def sleeping_works(piece_s: float = 0.1) -> dict[str, Work]:
    """Return the pieces of a simulated board, whose power does not follow from what is run."""
    return dict.fromkeys((MATMUL, MEMORY), lambda times: time.sleep(times * piece_s))


def torch_works(device_id: str) -> dict[str, Work]:
    """Return the pieces in plain PyTorch on one GPU: 8192³ bf16 matmuls, and 40 GEMMs of 32 rows in a CUDA graph.

    Raises:
        MeterError: there is no PyTorch with CUDA, or it does not see this GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise MeterError("calibrating needs PyTorch with CUDA: install torch") from error
    seen = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    index = next((at for at in seen if f"GPU-{torch.cuda.get_device_properties(at).uuid}" == device_id), None)
    if index is None:
        raise MeterError(f"{device_id}: PyTorch does not see this GPU (look at CUDA_VISIBLE_DEVICES)")
    torch.cuda.set_device(index)

    def repeated(piece: Callable[[], object]) -> Work:
        def work(times: int) -> None:
            for _ in range(times):
                piece()
            torch.cuda.synchronize()

        return work

    return {name: repeated(piece) for name, piece in torch_pieces().items()}


def torch_pieces() -> dict[str, Callable[[], object]]:
    """Make the fixed work ready on the current GPU; each call of a piece queues it once."""
    import torch

    make = torch.Generator("cuda")
    make.manual_seed(0)
    how: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": make}
    a, b = torch.randn(8192, 8192, **how), torch.randn(8192, 8192, **how)
    into = torch.empty_like(a)
    matrices = [torch.randn(8192, 8192, **how) for _ in range(8)]
    rows, narrow = torch.randn(32, 8192, **how), torch.empty(32, 8192, device="cuda", dtype=torch.bfloat16)
    torch.mm(a, b, out=into)
    torch.mm(rows, matrices[0], out=narrow)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(40):
            torch.mm(rows, matrices[at % 8], out=narrow)

    def replay(operands: object = (rows, narrow, *matrices)) -> None:
        """Run the graph, which knows its operands by their addresses alone: they live as long as this does."""
        graph.replay()

    return {MATMUL: lambda: torch.mm(a, b, out=into), MEMORY: replay}
