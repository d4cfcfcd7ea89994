"""`tokenpower analyse`: the energy of a recording's windows, by the rules of a live run."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_tokenpower.analysis.calibration import track_of
from pytest_tokenpower.analysis.replay import RoundPhases, stepped_rounds, window_records
from pytest_tokenpower.analysis.tracks import EnergyTrack
from pytest_tokenpower.core.records import RoundRecord
from pytest_tokenpower.core.text import table_lines
from pytest_tokenpower.core.windows import BETWEEN, DECODE, MIXED, PREFILL
from pytest_tokenpower.meters.recording import RecordedWindow, Recording, read_recording
from pytest_tokenpower.meters.types import Device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of this command."""
    parser.add_argument(
        "recording", type=Path, metavar="RECORDING", help="a file that --energy-record wrote, or one like it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the analysis; 0 also where windows are invalid, each of which says why."""
    recording = read_recording(arguments.recording)
    result = analyse(recording)
    if arguments.json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print(_text(recording, result))
    return 0


def analyse(recording: Recording) -> dict[str, Any]:
    """Return what ``--json`` prints, as docs/recording-format.md describes it; the windows in the recording's order."""
    tracks = {device.id: track_of(recording.timeline, device) for device in recording.devices}
    records = window_records(recording)
    return {
        "scale": _overall_scale(list(tracks.values())),
        "devices": {device.id: _device(device, tracks[device.id]) for device in recording.devices},
        "windows": [
            _window(window, record) for window, record in zip(recording.windows, records, strict=True)
        ],
    }


def _overall_scale(tracks: list[EnergyTrack | None]) -> float | None:
    """Return the factor from ring to counter; over several devices that of their sum. None where one has none."""
    fitted = [track for track in tracks if track is not None and track.fit is not None]
    if not fitted or len(fitted) < len(tracks):
        return None
    joules = [float(track.joules[-1]) for track in fitted]
    return sum(track.scale * each for track, each in zip(fitted, joules, strict=True)) / sum(joules)


def _device(device: Device, track: EnergyTrack | None) -> dict[str, Any]:
    known = {
        "name": device.name,
        "scope": device.scope,
        "meter": device.meter,
        "recorded_as": device.key_facts.get("recorded_as"),
        "method": track.method if track else None,
        "scale": None,
    }
    if track is not None and (fit := track.fit) is not None:
        known |= {
            "scale": fit.scale,
            "scale_stderr": fit.stderr,
            "counter_over_ring": fit.agreement,
            "residual_joules": fit.residual_joules,
            "counter_readings": fit.readings,
        }
    return known


def _window(window: RecordedWindow, record: RoundRecord) -> dict[str, Any]:
    joules, reasons = record.joules, list(record.reasons)
    if window.end_ns <= window.start_ns:
        reasons = ["the window does not end after it starts"]
    tokens = window.prompt_tokens if window.phase == "prefill" else window.generated_tokens
    return {
        "name": window.name,
        "phase": window.phase,
        "joules": joules,
        "stderr": record.stderr_joules if joules is not None else None,
        "watts": joules / record.seconds if joules is not None else None,
        "joules_per_token": joules / tokens if joules is not None and tokens else None,
        "valid": joules is not None and not reasons,
        "reasons": reasons,
        "seconds": record.seconds,
        "devices": record.device_joules,
    }


def _text(recording: Recording, result: dict[str, Any]) -> str:
    lines = [f"recording: {recording.path}"]
    for device_id, device in result["devices"].items():
        lines.append(
            f"{device_id}: {device['name']}, {device['method'] or 'no readings'}{_scale_words(device)}"
        )
    shown = _shown(recording, result["windows"])
    rows = [
        [
            window["name"],
            window["phase"] or "",
            _number(window["seconds"], ".4g"),
            _number(window["joules"], ".5g"),
            _number(_relative(window), ".1%"),
            _number(window["watts"], ".0f"),
            _number(window["joules_per_token"], ".4g"),
            "" if window["valid"] else "INVALID: " + "; ".join(window["reasons"]),
        ]
        for window in shown
    ]
    header = ["window", "phase", "s", "J", "±95 %", "W", "J/token", ""]
    align = ["left", "left", *["right"] * 5, "left"]
    lines += ["", *(table_lines(rows, header, align) if rows else ["The recording has no windows."])]
    if any(str(window["phase"]).startswith("prefill") for window in shown):
        lines += ["", "J/token: per generated token; of a prefill, per prompt token."]
    return "\n".join(lines)


def _shown(recording: Recording, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a person reads: the steps of an engine's round as its phases, every other window as it is."""
    stepped = stepped_rounds(recording)
    steps = {at for one in stepped.values() for at in one.steps}
    shown = []
    for at, window in enumerate(windows):
        if at not in steps:
            shown.append(window)
        if (one := stepped.get(at)) is not None:
            shown += _phases(recording.windows, one)
    return shown


def _phases(windows: Sequence[RecordedWindow], one: RoundPhases) -> Iterator[dict[str, Any]]:
    """Return the phases of a round as rows; one row that says why where they are not known."""
    name = windows[one.steps[0]].name
    counts = Counter(windows[at].phase for at in one.steps)
    if not one.record.phases:
        yield {
            **dict.fromkeys(("seconds", "joules", "stderr", "watts", "joules_per_token")),
            "name": name,
            "phase": f"{len(one.steps)} steps",
            "valid": False,
            "reasons": [one.refusal or "the phases of an invalid round are not told"],
        }
    mixed = f" + {counts[MIXED]} mixed" if counts[MIXED] else ""
    for phase, found in one.record.phases.items():
        tokens = {PREFILL: one.record.prompt_tokens, DECODE: one.record.generated_tokens}.get(phase, 0)
        yield {
            "name": name,
            "phase": f"{phase} ({counts[phase]}{mixed} steps)" if phase != BETWEEN else phase,
            "seconds": found.seconds,
            "joules": found.joules,
            "stderr": found.stderr_joules,
            "watts": found.joules / found.seconds,
            "joules_per_token": found.joules / tokens if tokens else None,
            "valid": True,
            "reasons": [],
        }


def _scale_words(device: dict[str, Any]) -> str:
    if device["scale"] is None:
        return ""
    return (
        f" × {device['scale']:.4f} ± {1.96 * device['scale_stderr']:.4f} "
        f"(against {device['counter_readings']} readings of the energy counter)"
    )


def _relative(window: dict[str, Any]) -> float | None:
    if not window["joules"] or window["joules"] < 0 or window["stderr"] is None:
        return None
    return 1.96 * float(window["stderr"]) / float(window["joules"])


def _number(value: float | None, how: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, how)
