"""`tokenpower calibrate`: some seconds of fixed work and of waiting on each board, kept in the store."""

from __future__ import annotations

import argparse

import msgspec

from pytest_tokenpower.cli.store_access import add_storage
from pytest_tokenpower.core.jobs import current_job
from pytest_tokenpower.errors import MeterError, UsageError
from pytest_tokenpower.meters import sources
from pytest_tokenpower.runner.calibrate import WINDOW_SECONDS, calibrate, sleeping_works, torch_works
from pytest_tokenpower.runner.locks import hold_devices
from pytest_tokenpower.runner.telemetry import TelemetrySession
from pytest_tokenpower.store.access import StoreContext
from pytest_tokenpower.store.calibrations import STALE_DAYS, write_calibration

EPILOG = f"""\
Boards of one model differ by about 1.5 %. A calibration foretells most of that, so that runs of different boards can be
compared, and tells what a board draws while it waits for its host. It takes about 20 seconds a board, which must be
otherwise idle, and holds for {STALE_DAYS} days and one driver version: calibrate every board of the stored runs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        default="nvml",
        help="nvml (default), simulated or simulated:SCENARIO.json",
    )
    parser.add_argument(
        "--window",
        metavar="S",
        type=float,
        default=WINDOW_SECONDS,
        help=f"how long each of the windows is (default: {WINDOW_SECONDS:g})",
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate each board; 1 where one could not be."""
    if not 0.05 <= arguments.window <= 60:
        raise UsageError(f"--window={arguments.window:g}: must be from 0.05 to 60 seconds")
    source: str = arguments.source
    simulated = source.partition(":")[0] == "simulated"
    if source != "nvml" and not simulated:
        raise UsageError(f"--source={source}: must be nvml, simulated or simulated:SCENARIO.json")
    store = StoreContext.of(arguments, may_be_new=True).store
    job = current_job()
    started = sources.begin(source, "gpu")
    failed = 0
    try:
        telemetry = TelemetrySession(started.collector, started.devices, "gpu", started.notes)
        for device in telemetry.devices:
            try:
                with hold_devices([] if simulated else [device.id]):
                    works = sleeping_works(arguments.window / 10) if simulated else torch_works(device.id)
                    found = calibrate(telemetry, device, works, arguments.window)
                if job:
                    found = msgspec.structs.replace(found, job=job.name)
            except MeterError as error:
                print(f"{device.id}: {error}")
                failed += 1
                continue
            path = write_calibration(store.path, found)
            pieces = ", ".join(f"{name} {each.value:.4g} J" for name, each in found.pieces.items())
            print(
                f"{device.id} ({found.name}): waits at {found.waiting.watts:.1f} W; {pieces} a piece; {path}"
            )
    finally:
        started.collector.stop()
    return int(bool(failed))
