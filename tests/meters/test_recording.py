"""The recording: what is written is read back, and what is malformed is named with its file and line."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_tokenpower.analysis.replay import recorded_windows, rounds_of, window_records
from pytest_tokenpower.analysis.rounds import round_records
from pytest_tokenpower.core.tokens import TokenCount
from pytest_tokenpower.core.windows import Latency, RoundWindow
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.recording import RecordedWindow, Recording, read_recording, write_recording
from pytest_tokenpower.meters.timeline import Event, Timeline
from pytest_tokenpower.meters.types import Conditions, CounterReading, Device, PowerSamples, Reading

US = 1000
HEAD: dict[str, Any] = {"type": "recording", "version": 1}


def written(path: Path, *rows: dict[str, Any] | str, head: dict[str, Any] | str = HEAD) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in (head, *rows)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def power(t_us: int, milliwatts: int = 300_000, device: str = "GPU-1") -> dict[str, Any]:
    return {"type": "power", "device": device, "t_us": t_us, "mw": milliwatts}


def counter(t_us: int, millijoules: float, device: str = "GPU-1") -> dict[str, Any]:
    return {"type": "counter", "device": device, "t0_us": t_us, "t1_us": t_us + 3000, "mj": millijoules}


def window(start_us: int, end_us: int, **fields: Any) -> dict[str, Any]:
    return {"type": "window", "name": "w", "phase": None, "start_us": start_us, "end_us": end_us, **fields}


def close(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else math.isclose(one, other, rel_tol=1e-6)


# --- there and back


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """One to three devices with a few seconds of power, a counter, conditions and events."""
    timeline = Timeline()
    for number in range(draw(st.integers(1, 3))):
        held = draw(st.booleans())
        device = Device(
            id=f"dev {number}",
            scope=draw(st.sampled_from(["gpu", "cpu"])),
            name=draw(st.text(min_size=1, max_size=5)),
            meter="nvml",
            provenance=draw(st.sampled_from(["measured", "simulated"])),
            key_facts={"memory_gib": draw(st.one_of(st.none(), st.integers(1, 200)))},
            facts={"driver": "580", "energy_counter": False},
            counter_tick_ns=draw(st.sampled_from([0, 100_000_000])),
            clock_error_ns=draw(st.sampled_from([0, 2_000_000])),
        )
        timeline.add_device(device)
        steps = np.resize(draw(st.lists(st.integers(7_000, 45_000), min_size=1, max_size=5)), 150)
        t_ns = np.cumsum([draw(st.integers(0, 10**6)), *steps], dtype=np.int64) * US
        milliwatts = draw(st.lists(st.integers(1, 900_000), min_size=1, max_size=5))
        samples = np.resize(np.array(milliwatts, dtype=np.int64), len(t_ns))
        joules = np.cumsum(np.diff(t_ns, prepend=t_ns[0]) * samples // 10**6)
        readings = [
            CounterReading(int(t), int(t) + 3000 * US, int(value))
            for t, value in zip(t_ns[::40], joules[::40], strict=True)
        ]
        timeline.append(Reading(device.id, PowerSamples(t_ns, samples, held)))
        if draw(st.booleans()):
            timeline.append(Reading(device.id, counters=readings))
        if draw(st.booleans()):
            pids = draw(st.one_of(st.none(), st.just(()), st.just((17,))))
            conditions = Conditions(
                int(t_ns[50]), 50.0, 1980.0, {"thermal": 3}, pids, own_process=True, memory_gib=71.5
            )
            timeline.append(Reading(device.id, conditions=conditions))
    if draw(st.booleans()):
        start_ns = draw(st.integers(0, 10**6)) * US
        named = draw(st.sampled_from([None, "dev 0"]))
        timeline.note(Event(start_ns, start_ns + 5000 * US, "meter failed", "it hung", named))
    return timeline


@st.composite
def rounds_in(draw: st.DrawFn, longest_us: int) -> list[RoundWindow]:
    edges = draw(st.lists(st.integers(0, longest_us), min_size=2, max_size=10, unique=True).map(sorted))
    prompt, cached = sorted((draw(st.integers(0, 99)), draw(st.integers(0, 99))), reverse=True)
    tokens = TokenCount(prompt, draw(st.integers(1, 99)), draw(st.integers(1, 9)), cached)
    reasons = draw(st.sampled_from([(), ("others used the server",)]))
    latencies = draw(st.sampled_from([(), (Latency(0.125, 0.01), Latency(0.5, None))]))
    several = frozenset([TokenCount(9, 1, 2, 3), TokenCount(9, 2, 2, 3)])
    executions = draw(st.sampled_from([frozenset[TokenCount](), frozenset([tokens]), several]))
    return [
        RoundWindow(
            start * US, end * US, tokens, 2, executions=executions, latencies=latencies, reasons=reasons
        )
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    timeline=timelines(),
    rounds=rounds_in(4_000_000),
    offset_us=st.integers(0, 2**51),
    name=st.sampled_from(["run.jsonl", "run.jsonl.gz"]),
)
def test_what_is_written_is_read_back(
    tmp_path: Path, timeline: Timeline, rounds: Sequence[RoundWindow], offset_us: int, name: str
) -> None:
    devices = list(timeline.devices.values())
    path = tmp_path / name
    windows = list(recorded_windows("a test", rounds, [device.id for device in devices]))
    write_recording(path, timeline, windows, realtime_offset_ns=offset_us * US)
    recording = read_recording(path)

    assert recording.devices == tuple(
        replace(
            device,
            provenance="replayed",
            key_facts={**device.key_facts, "recorded_as": device.provenance},
        )
        for device in devices
    )
    assert recording.windows == tuple(
        replace(each, start_ns=each.start_ns + offset_us * US, end_ns=each.end_ns + offset_us * US)
        for each in windows
    )
    live = round_records(timeline, devices, rounds)
    again = window_records(recording)
    assert [(each.tokens, each.latencies, each.executions) for each in rounds_of(recording, "a test")] == [
        (each.tokens, each.latencies, each.executions) for each in rounds
    ]
    for before, after in zip(live, again, strict=True):
        assert close(after.joules, before.joules)
        assert close(after.stderr_joules, before.stderr_joules)
        assert after.reasons == before.reasons
        assert after.latency == before.latency
        assert after.device_joules.keys() == before.device_joules.keys()
        assert after.temperature_celsius == before.temperature_celsius
    assert sorted(path.parent.iterdir()) == sorted(
        {path, *(tmp_path / each for each in ("run.jsonl", "run.jsonl.gz") if (tmp_path / each).exists())}
    )


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [power(20_000 * n, 300_000 + n) for n in range(1, 200)]
    rows += [counter(1_000_000 * n, 300_000 * n) for n in (1, 2, 3)]
    rows += [
        {"type": "conditions", "device": "GPU-1", "t_us": t, "temperature_celsius": 50} for t in (3, 2, 1)
    ]
    windows = [window(1_000_000, 2_000_000), window(500_000, 900_000)]
    one, other = (
        read_recording(written(tmp_path / f"{way}.jsonl", *rows[::way], *windows)) for way in (1, -1)
    )
    assert window_records(one) == window_records(other)
    assert one.timeline.conditions("GPU-1") == other.timeline.conditions("GPU-1")
    assert [each.start_ns for each in one.windows] == [10**9, 5 * 10**8]


def test_a_sample_that_was_drained_twice_counts_once(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "r", power(20_000, 1), power(40_000, 2), power(40_000, 3)))
    samples = recording.timeline.power("GPU-1")
    assert samples is not None
    assert samples.milliwatts.tolist() == [1, 2]


def test_a_finer_counter_is_kept_whole(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add_device(Device("cpu:0", "cpu", "package", "rapl", "measured"))
    readings = [CounterReading(n * US, n * US, 61 * n + 12_345_678_901) for n in range(20)]
    timeline.append(Reading("cpu:0", counters=readings))
    write_recording(tmp_path / "r.jsonl", timeline, [], realtime_offset_ns=0)
    counters = read_recording(tmp_path / "r.jsonl").timeline.counters("cpu:0")
    assert counters.microjoules.tolist() == [each.microjoules for each in readings]


# --- what others write


def test_the_rows_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/recording-format.md").read_text()
    block = next(part for part in text.split("```json\n")[1:] if part.count("\n") > 4).split("```")[0]
    types = [json.loads(line)["type"] for line in block.splitlines()]
    assert types == ["recording", "power", "counter", "window"]


def test_unknown_rows_and_fields_are_ignored(tmp_path: Path) -> None:
    path = written(
        tmp_path / "r.jsonl",
        {"type": "weather", "device": 17, "t_us": "noon"},
        {**power(20_000), "color": "red"},
        "",
        {"type": "window ", "t_us": None},
        {**window(0, 1), "note": {"deep": [1]}},
    )
    recording = read_recording(path)
    assert [device.id for device in recording.devices] == ["GPU-1"]
    assert recording.windows == (RecordedWindow("w", 0, 1000),)


def test_a_device_without_a_row_of_its_own(tmp_path: Path) -> None:
    [device] = read_recording(written(tmp_path / "r.jsonl", power(20_000))).devices
    assert (device.scope, device.provenance, device.counter_tick_ns) == ("gpu", "replayed", 100_000_000)
    assert "recorded_as" not in device.key_facts


BAD_ROWS = {
    "not JSON": ('{"type": "power", ', "not a line of JSON"),
    "no object": ("[1, 2]", "malformed row"),
    "no type": ('{"device": "GPU-1"}', "malformed row: Object missing required field `type`"),
    "no field": (
        '{"type": "power", "device": "G", "t_us": 3}',
        "malformed row: Object missing required field `mw`",
    ),
    "text": (json.dumps({**power(1), "mw": "300"}), "malformed row: Expected `int`, got `str` - at `$.mw`"),
    "negative power": (json.dumps(power(1, -5)), "malformed row: Expected `int` >= 0 - at `$.mw`"),
    "a power of the sun": (
        json.dumps(power(1, 2**40)),
        "malformed row: Expected `int` <= 4294967295 - at `$.mw`",
    ),
    "seconds": (
        json.dumps({**power(1), "t_us": 1.5}),
        "malformed row: Expected `int`, got `float` - at `$.t_us`",
    ),
    "nanoseconds": (json.dumps(power(10**19)), "malformed row: "),
    "backwards": (
        json.dumps({**counter(5, 5), "t1_us": 4}),
        "malformed row: t1_us (4) is before t0_us (5)",
    ),
    "tokens": (
        json.dumps(window(1, 2, prompt_tokens=-1)),
        "malformed row: Expected `int` >= 0 - at `$.prompt_tokens`",
    ),
    "more tokens than any work has": (
        json.dumps(window(1, 2, prompt_tokens=10**18)),
        "malformed row: TokenCount(prompt=1000000000000000000): more than any execution has",
    ),
    "executions": (
        json.dumps(window(1, 2, executions=[[1, 2, 1, 4]])),
        "malformed row: TokenCount(cached_prompt=4): more than the 1 prompt tokens",
    ),
    "cached tokens": (
        json.dumps(window(1, 2, prompt_tokens=3, cached_prompt_tokens=4)),
        "malformed row: cached_prompt_tokens (4) is above prompt_tokens (3)",
    ),
    "scope": (
        '{"type": "device", "id": "x", "scope": "moon"}',
        "malformed row: Invalid enum value 'moon' - at `$.scope`",
    ),
    "half a character": (json.dumps(power(1, 1, "\ud800")), "not a line of JSON: JSON is malformed: "),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_malformed_row_is_named_with_its_file_and_line(tmp_path: Path, case: str) -> None:
    line, reason = BAD_ROWS[case]
    path = written(tmp_path / "bad.jsonl", power(20_000), "", line, power(40_000))
    with pytest.raises(UsageError) as raised:
        read_recording(path)
    assert str(raised.value).startswith(f"{path}, line 4: {reason}")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (
            power(1),
            'line 1: a recording begins with {"type": "recording", "version": 1}, and this is type \'power\'',
        ),
        ({"type": "recording", "version": 2}, "and this is version 2"),
        ({"type": "recording"}, "and this is version None"),
        ("hello", "line 1: not a recording (not a line of JSON: "),
        ({"version": 1}, "line 1: not a recording (malformed row: "),
    ],
)
def test_a_file_that_is_no_recording_says_so(tmp_path: Path, head: Any, reason: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_recording(written(tmp_path / "x", power(20_000), head=head))
    assert reason in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_an_empty_file_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty").write_bytes(content)
    with pytest.raises(UsageError, match="this recording is empty"):
        read_recording(tmp_path / "empty")


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone: this recording cannot be read: No such file"):
        read_recording(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        read_recording(tmp_path)
    (tmp_path / "plain.gz").write_bytes(b'{"type": "recording", "version": 1}\n')
    with pytest.raises(UsageError, match=r"plain.gz: this recording cannot be read: Not a gzipped file"):
        read_recording(tmp_path / "plain.gz")
    whole = gzip.compress(b'{"type": "recording", "version": 1}\n' * 50)
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    with pytest.raises(UsageError, match=r"cut.gz: this recording cannot be read: "):
        read_recording(tmp_path / "cut.gz")


def test_a_recording_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder.jsonl"
    target.mkdir()
    with pytest.raises(UsageError, match=r"folder.jsonl: the recording cannot be written"):
        write_recording(target, Timeline(), [], realtime_offset_ns=0)
    assert list(tmp_path.iterdir()) == [target]


def test_a_device_that_only_a_window_names_makes_it_invalid_not_smaller(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", *steady(), window(1_500_000, 2_500_000, devices=["GPU-1", "GPU-2"]))
    [record] = window_records(read_recording(path))
    assert record.joules is None
    assert record.reasons == ("GPU-2: the meter recording gave no readings",)


# --- what a live meter would have noted


def steady(seconds: int = 6, watts: int = 300, *, counted: bool = True) -> list[dict[str, Any]]:
    rows = [power(20_000 * n, watts * 1000) for n in range(1, 50 * seconds)]
    if counted:
        rows += [counter(1_000_000 * n, 1000 * watts * n) for n in range(1, seconds)]
    return rows


def reasons(recording: Recording) -> list[str]:
    return [reason for record in window_records(recording) for reason in record.reasons]


def test_a_sound_recording_has_no_reasons(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "r", *steady(), window(1_500_000, 2_500_000)))
    [record] = window_records(recording)
    assert record.reasons == ()
    assert record.joules == pytest.approx(300, rel=1e-3)


def test_a_ring_that_no_counter_checks_is_not_trusted(tmp_path: Path) -> None:
    rows = [*steady(counted=False), window(1_500_000, 2_500_000)]
    [reason] = reasons(read_recording(written(tmp_path / "r", *rows)))
    assert "no energy counter to check the power ring against" in reason
    without = {"type": "device", "id": "GPU-1", "facts": {"energy_counter": False}}
    assert reasons(read_recording(written(tmp_path / "r", *rows, without))) == []


def test_a_counter_that_goes_backwards_spoils_the_windows_around_it(tmp_path: Path) -> None:
    rows = steady()
    for row in rows:
        if row["type"] == "counter" and row["t0_us"] >= 3_000_000:
            row["mj"] -= 850_000
    path = written(tmp_path / "r", *rows, window(2_200_000, 2_800_000), window(4_200_000, 4_800_000))
    first, second = window_records(read_recording(path))
    assert any("went backwards, from 600.0 J to 50.0 J" in reason for reason in first.reasons)
    assert not any("went backwards" in reason for reason in second.reasons)


def test_a_clock_that_was_set_spoils_the_windows_around_it(tmp_path: Path) -> None:
    clocks = [
        {
            "type": "clock",
            "realtime_us": 1_000_000 * n + (80_000 if n > 3 else 0),
            "monotonic_ns": 10**9 * n + 7,
        }
        for n in range(6)
    ]
    path = written(
        tmp_path / "r", *steady(), *clocks, window(3_200_000, 3_700_000), window(1_200_000, 1_700_000)
    )
    first, second = window_records(read_recording(path))
    assert any("the realtime clock was set by +80.0 ms" in reason for reason in first.reasons)
    assert second.reasons == ()


# --- what was written and changed since


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    timeline = Timeline()
    timeline.add_device(Device("GPU-1", "gpu", "board", "nvml", "measured"))
    timeline.append(Reading("GPU-1", counters=[CounterReading(n * US, n * US, 61 * n) for n in range(3)]))
    path = tmp_path_factory.mktemp("kept") / "r.jsonl"
    write_recording(path, timeline, [], realtime_offset_ns=0)
    return path


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_recording_changes_nothing_unnoticed(
    kept: Path, tmp_path: Path, at: int, bit: int
) -> None:
    data = bytearray(kept.read_bytes())
    data[at % len(data)] ^= 1 << bit
    (tmp_path / "flipped.jsonl").write_bytes(data)
    with pytest.raises(UsageError, match=r"flipped.jsonl"):
        read_recording(tmp_path / "flipped.jsonl")


@pytest.mark.parametrize("cut", ["row", "end"])
def test_a_recording_that_was_cut_short_is_refused(kept: Path, tmp_path: Path, cut: str) -> None:
    lines = kept.read_bytes().splitlines(keepends=True)
    del lines[-2 if cut == "row" else -1]
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UsageError, match=r"cut short, or changed"):
        read_recording(tmp_path / "cut.jsonl")


def test_damaged_compression_is_an_error_of_the_file(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b'{"type": "recording", "version": 1}\n' * 50))
    data[10] = 0xFF  # an invalid kind of block
    (tmp_path / "bad.gz").write_bytes(data)
    with pytest.raises(UsageError, match=r"bad.gz: this recording cannot be read"):
        read_recording(tmp_path / "bad.gz")
