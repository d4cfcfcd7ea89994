"""What --energy-source names: single meters, several together, the best one of a scope, and what may fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_tokenpower.core.types import Scope
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters import sources
from pytest_tokenpower.meters.accelerators import AMD, NVIDIA, find_accelerator
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.types import CounterReading, Device, Meter, Reading


class FakeMeter:
    """Devices of the given scopes, or none and a reason."""

    poll_interval_s = 0.05

    def __init__(self, name: str, *scopes: Scope, closed: list[str] | None = None) -> None:
        self.name = name
        self.scopes = scopes
        self.closed = [] if closed is None else closed

    def open(self, clock: Clock) -> Sequence[Device]:
        if not self.scopes:
            raise MeterUnavailable(f"{self.name} is not here")
        return [
            Device(f"{self.name}-{scope}", scope, self.name, self.name, "measured") for scope in self.scopes
        ]

    def poll(self, clock: Clock) -> Sequence[Reading]:
        now_ns = clock.monotonic_ns()
        counters = (CounterReading(now_ns, now_ns, now_ns // 1000),)
        return [Reading(f"{self.name}-{scope}", counters=counters) for scope in self.scopes]

    def close(self) -> None:
        self.closed.append(self.name)


ALL: Mapping[str, tuple[Scope, ...]] = {
    "nvml": ("gpu",),
    "amd": ("gpu",),
    "rapl": ("cpu", "dram"),
    "hwmon": ("node",),
    "ipmi": ("node",),
    "redfish": ("node",),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Scope, ...]]:
    """Return the meters of a machine: what a name opens; to be changed by the test. It has no GPU that has no meter."""
    found: dict[str, tuple[Scope, ...]] = dict(ALL)
    known = sources.meters_for

    def meters_for(source: str) -> Sequence[Meter]:
        name = source.partition(":")[0]
        return [FakeMeter(name, *found[name])] if name in found else known(source)

    def hwmon_of_the_node() -> tuple[str, ...]:
        return ("hwmon",) if found["hwmon"] == ("node",) else ()

    monkeypatch.setattr(sources, "meters_for", meters_for)
    monkeypatch.setattr(sources, "_hwmon_of_the_node", hwmon_of_the_node)
    monkeypatch.setattr(sources, "find_accelerator", lambda: None)
    monkeypatch.delenv("TOKENPOWER_REDFISH_URL", raising=False)
    return found


def opened(source: str, scope: Scope | None = None) -> tuple[list[str], Mapping[str, str]]:
    started = sources.begin(source, scope)
    started.collector.stop()
    return [device.id for device in started.devices], started.notes


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nvml", ("nvml",)),
        ("nvml,rapl", ("nvml", "rapl")),
        ("nvml, ipmi", ("nvml", "ipmi")),
        ("auto,redfish:https://bmc,rapl", ("auto", "redfish:https://bmc", "rapl")),
        ("prometheus:http://host:9090/a,B=1", ("prometheus:http://host:9090/a,B=1",)),
        ("simulated:boards,two.json", ("simulated:boards,two.json",)),
        ("replay:run.jsonl.gz", ("replay:run.jsonl.gz",)),
    ],
)
def test_a_list_of_sources(source: str, parts: tuple[str, ...]) -> None:
    assert sources.parts_of(source) == parts


@pytest.mark.parametrize("source", ["", "nvml,", ",nvml", "nvml,,rapl", "nvml,nvml", "rapl,replay:run.jsonl"])
def test_a_malformed_list_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match=r"--energy-source="):
        sources.parts_of(source)


@pytest.mark.parametrize(
    ("source", "meter"),
    [
        ("nvml", "nvml"),
        ("amd", "amd"),
        ("rapl", "rapl"),
        ("hwmon", "hwmon"),
        ("ipmi", "ipmi"),
        ("redfish", "redfish"),
        ("redfish:https://bmc.example.org", "redfish"),
        ("prometheus", "prometheus"),
        ("prometheus:http://prometheus:9090", "prometheus"),
        ("model", "cpu-model"),
        ("simulated", "nvml"),
    ],
)
def test_every_source_has_its_meter(source: str, meter: str) -> None:
    assert [each.name for each in sources.meters_for(source)] == [meter]


@pytest.mark.parametrize("source", ["gpu", "nvml:0", "rapl:1", "ipmi:host", "nvml,volts", "model,replay"])
def test_an_unknown_source_is_refused_with_the_valid_ones(source: str) -> None:
    with pytest.raises(UsageError, match=r"valid sources are auto, nvml, amd, rapl|stands alone"):
        sources.check(source)


@pytest.mark.parametrize("source", ["redfish:bmc", "redfish:https://me:secret@bmc", "prometheus:host:9090"])
def test_a_wrong_url_is_refused_before_any_test(source: str) -> None:
    with pytest.raises(UsageError) as error:
        sources.check(f"nvml,{source}")
    assert "secret" not in str(error.value)


def test_another_plugin_may_give_one_of_several_sources() -> None:
    sources.check("nvml,volts", lambda part: [FakeMeter("volts", "rack")] if part == "volts" else None)


def test_a_prometheus_query_has_a_unit_and_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPOWER_PROMETHEUS_QUERY", "pdu_watts")
    sources.check("prometheus")
    monkeypatch.setenv("TOKENPOWER_PROMETHEUS_SCOPE", "room")
    with pytest.raises(UsageError, match=r"_SCOPE=room: must be one of gpu, cpu"):
        sources.check("prometheus")
    monkeypatch.setenv("TOKENPOWER_PROMETHEUS_SCOPE", "node")
    monkeypatch.setenv("TOKENPOWER_PROMETHEUS_UNIT", "calories")
    with pytest.raises(UsageError, match=r"'calories' must be one of watts"):
        sources.check("prometheus")


@pytest.mark.parametrize(
    ("scope", "absent", "expected"),
    [
        (None, (), ["nvml-gpu"]),
        (None, ("nvml",), ["amd-gpu"]),
        (None, ("nvml", "amd"), ["rapl-cpu", "rapl-dram"]),
        ("gpu", (), ["nvml-gpu"]),
        ("cpu", (), ["rapl-cpu", "rapl-dram"]),
        ("cpu", ("rapl",), ["hwmon-node"]),
        ("node", (), ["nvml-gpu", "rapl-cpu", "rapl-dram", "ipmi-node"]),
        ("node", ("ipmi",), ["nvml-gpu", "rapl-cpu", "rapl-dram", "hwmon-node"]),
        ("node", ("ipmi", "hwmon", "amd"), ["nvml-gpu", "rapl-cpu", "rapl-dram"]),
        ("node", ("nvml", "amd", "rapl"), ["hwmon-node"]),
    ],
)
def test_auto_takes_the_best_meter_of_the_scope(
    machine: dict[str, tuple[Scope, ...]], scope: Scope | None, absent: Sequence[str], expected: Sequence[str]
) -> None:
    machine.update(dict.fromkeys(absent, ()))
    assert opened("auto", scope) == (expected, {})


def test_auto_asks_a_bmc_by_redfish_where_one_is_named(
    machine: dict[str, tuple[Scope, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENPOWER_REDFISH_URL", "https://bmc.example.org")
    assert opened("auto", "node")[0][-1] == "redfish-node"


def test_hwmon_is_no_second_meter_of_the_cpu(machine: dict[str, tuple[Scope, ...]]) -> None:
    machine.update({"ipmi": (), "hwmon": ("cpu", "node")})
    assert opened("auto", "node")[0] == ["nvml-gpu", "rapl-cpu", "rapl-dram"]


@pytest.mark.parametrize("scope", [None, "gpu", "cpu", "node"])
def test_auto_says_of_each_meter_why_it_is_not_there(
    machine: dict[str, tuple[Scope, ...]], scope: Scope | None
) -> None:
    machine.update(dict.fromkeys(ALL, ()))
    with pytest.raises(MeterUnavailable, match=r"on this machine\. .*is not here"):
        sources.begin("auto", scope)


def test_a_gpu_whose_meter_is_broken_does_not_become_a_cpu_figure(
    machine: dict[str, tuple[Scope, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.update({"nvml": (), "amd": ()})
    monkeypatch.setattr(sources, "find_accelerator", lambda: NVIDIA)
    with pytest.raises(MeterUnavailable, match=r"has a GPU \(NVIDIA\).*nvml is not here.*--energy-scope=cpu"):
        sources.begin("auto")
    assert opened("auto", "cpu")[0] == ["rapl-cpu", "rapl-dram"]


@pytest.mark.parametrize("scope", [None, "gpu"])
def test_a_gpu_whose_meter_is_broken_does_not_become_the_figure_of_a_card_beside(
    machine: dict[str, tuple[Scope, ...]], monkeypatch: pytest.MonkeyPatch, scope: Scope | None
) -> None:
    monkeypatch.setattr(sources, "find_accelerator", lambda: NVIDIA)
    assert opened("auto", scope)[0] == ["nvml-gpu"]
    machine["nvml"] = ()
    with pytest.raises(MeterUnavailable, match=r"has a GPU \(NVIDIA\).*nvml is not here.*hide it"):
        sources.begin("auto", scope)
    monkeypatch.setattr(sources, "find_accelerator", lambda: AMD)
    assert opened("auto", scope)[0] == ["amd-gpu"]


def test_which_gpus_a_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev, drm = tmp_path / "dev", tmp_path / "drm"
    memory = drm / "card0" / "device" / "mem_info_vram_total"
    dev.mkdir()
    memory.parent.mkdir(parents=True)
    (dev / "nvidiactl").touch()
    memory.write_text(f"{512 << 20}\n")
    assert find_accelerator(dev, drm) is None
    memory.write_text(f"{192 << 30}\n")
    assert find_accelerator(dev, drm) is AMD
    (dev / "nvidia0").touch()
    assert find_accelerator(dev, drm) is NVIDIA
    memory.unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert find_accelerator(dev, drm) is None


@pytest.mark.parametrize(
    ("source", "scope", "absent", "noted"),
    [
        ("nvml,rapl", None, "rapl", True),
        ("nvml,rapl", "gpu", "rapl", True),
        ("nvml,rapl", None, "nvml", False),
        ("nvml,rapl", "cpu", "nvml", True),
        ("nvml,rapl", "cpu", "rapl", False),
        ("rapl,ipmi", None, "ipmi", True),
        ("rapl,ipmi", None, "rapl", False),
        ("nvml,rapl,ipmi", "node", "rapl", False),
        ("nvml,rapl,ipmi", "node", "ipmi", False),
        ("auto,rapl", "gpu", "rapl", True),
    ],
)
def test_only_a_meter_that_the_figure_does_not_need_may_be_absent(
    machine: dict[str, tuple[Scope, ...]], source: str, scope: Scope | None, absent: str, noted: bool
) -> None:
    machine[absent] = ()
    if noted:
        devices, notes = opened(source, scope)
        assert notes == {absent: f"{absent} is not here"}
        assert devices
        assert not any(device.startswith(absent) for device in devices)
    else:
        with pytest.raises(MeterError, match=f"{absent} is not here"):
            sources.begin(source, scope)


@pytest.mark.parametrize("source", ["ipmi,redfish", "hwmon,ipmi", "nvml,rapl,ipmi,hwmon"])
def test_two_meters_of_one_scope_are_not_added_up(machine: dict[str, tuple[Scope, ...]], source: str) -> None:
    with pytest.raises(UsageError, match="measure the scope node, which would be counted twice"):
        sources.begin(source)


def test_meters_of_two_nodes_are_added_up_and_those_of_one_node_are_not() -> None:
    class Elsewhere(FakeMeter):
        def open(self, clock: Clock) -> Sequence[Device]:
            node = self.name.partition(":")[2]
            return [replace(each, facts={"node": node} if node else {}) for each in super().open(clock)]

    def extra(part: str) -> Sequence[Meter] | None:
        return None if "," in part else [Elsewhere(part, "gpu")]

    def ids(source: str) -> list[str]:
        started = sources.begin(source, None, extra)
        started.collector.stop()
        return [device.id for device in started.devices]

    assert ids("one:a,two:b") == ["one:a-gpu", "two:b-gpu"]
    for source in ("one:a,two:a", "one:a,here"):
        with pytest.raises(UsageError, match="measure the scope gpu, which would be counted twice"):
            ids(source)


def test_boards_of_two_makers_are_added_up(machine: dict[str, tuple[Scope, ...]]) -> None:
    assert opened("nvml,amd")[0] == ["nvml-gpu", "amd-gpu"]


def test_what_was_opened_is_closed_when_another_meter_fails() -> None:
    closed: list[str] = []
    meters = {"first": FakeMeter("first", "rack", closed=closed), "second": FakeMeter("second")}
    with pytest.raises(MeterUnavailable, match="second is not here"):
        sources.begin("first,second", None, lambda part: [meters[part]] if part in meters else None)
    assert closed == ["first"]


def test_a_device_that_two_meters_list_is_a_usage_error() -> None:
    meters = {part: FakeMeter("same", "rack") for part in ("first", "second")}
    with pytest.raises(UsageError, match="two meters list the device same-rack"):
        sources.begin("first,second", None, lambda part: [meters[part]] if part in meters else None)


def test_a_cluster_is_not_joined_to_check_how_a_source_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pytest_tokenpower.meters.adapters.ray_nodes.ray_meters", joined)
    sources.check("ray:rapl")
    with pytest.raises(AssertionError):
        sources.meters_for("ray:rapl")
