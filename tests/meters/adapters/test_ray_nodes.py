"""A real Ray cluster of two nodes on this machine, each with a simulated board of its own."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_tokenpower.errors import MeterUnavailable
from pytest_tokenpower.meters.adapters.ray_nodes import ray_meters
from pytest_tokenpower.meters.clock import Clock
from pytest_tokenpower.meters.sources import meters_for
from tests.support.projects import Project

ray = pytest.importorskip("ray", reason="ray is not installed (the extra ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")


BOARDS = {"GPU-a0000000-0000-0000-0000-000000000000": 300, "GPU-b0000000-0000-0000-0000-000000000000": 500}
QUIET: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}


def scenario(folder: Path, uuid: str, name: str = "Simulated H100 80GB", **more: Any) -> str:
    path = folder / f"{uuid[4]}.json"
    board = {"uuid": uuid, "name": name, "power": {"points": [[0, BOARDS[uuid]]]}}
    path.write_text(json.dumps({"boards": [board], **more}))
    return f"simulated:{path}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("scenarios")
    one, other = (scenario(folder, uuid) for uuid in BOARDS)
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**QUIET, "env_vars": {"TOKENPOWER_SOURCE": one}}
    )
    try:
        made.first = one
        made.second = made.add_node(**QUIET, env_vars={"TOKENPOWER_SOURCE": other})
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_workload_is_measured_on_all_nodes_and_a_dead_node_is_named(
    cluster: Any, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    project.on_machine_time()
    project.tests("def test_chat(energy): energy(generate)")
    result, run = project.measure("--energy-source=ray:simulated")
    result.assert_outcomes(passed=1)
    [measured] = run.measurements
    assert measured.comparable
    assert measured.figures["mean_watts"].value == pytest.approx(800, rel=0.005)
    assert measured.figures["power_imbalance"].value == pytest.approx(0.25, rel=0.01)
    assert measured.figures["node_imbalance"].value == pytest.approx(0.25, rel=0.01)
    for one in measured.rounds:
        assert one.device_joules == {
            uuid: pytest.approx(watts * one.seconds, rel=0.01) for uuid, watts in BOARDS.items()
        }
    nodes = {value for name, value in measured.facts.items() if name.endswith("node")}
    assert len(nodes) == 2

    project.tests("@quick\ndef test_chat(energy): energy(lambda: generate(0.3))")
    for _ in range(4):
        _, run = project.measure("--energy-source=ray:simulated")
        assert {*run.measurements[0].rounds[0].device_joules} == {*BOARDS}

    project.tests(
        """
import ray

@quick
def test_chat(energy): energy(lambda: generate(0.3)); ray.shutdown()
@quick
def test_after(energy): energy(lambda: generate(0.3))
"""
    )
    result = project.run("--energy-source=ray:simulated")
    result.assert_outcomes(passed=1, failed=1)
    assert re.search(r"node \S+: Ray was shut down in this process", " ".join(result.stdout.str().split()))
    twice = cluster.add_node(**QUIET, env_vars={"TOKENPOWER_SOURCE": cluster.first})
    result = project.run("--energy-source=ray:simulated")
    cluster.remove_node(twice)
    assert re.search(r"two meters list the device GPU-a\S+ \(of \S+ and \S+, ", result.stdout.str())

    project.tests("def test_chat(energy): energy(generate)")
    poor = cluster.add_node(**QUIET, env_vars={"TOKENPOWER_SOURCE": "redfish:http://127.0.0.1:9"})
    result = project.run("--energy-source=ray:simulated")
    cluster.remove_node(poor)
    result.assert_outcomes(skipped=1)
    assert re.search(r"node \S+: .*127\.0\.0\.1:9", " ".join(result.stdout.str().split()))

    project.tests(
        """
import os, signal
from pathlib import Path

def test_chat(energy):
    rounds = 0
    def work():
        nonlocal rounds
        rounds += 1
        if rounds == 4:
            os.kill(int(Path("raylet.pid").read_text()), signal.SIGKILL)
        return generate()
    energy(work)
"""
    )
    raylet = next(each for each in cluster.second.all_processes["raylet"])
    (project.path / "raylet.pid").write_text(str(raylet.process.pid))
    result, run = project.measure("--energy-source=ray:simulated")
    result.assert_outcomes(failed=1)
    [measured] = run.measurements
    assert not measured.comparable
    assert any("node " in reason for each in measured.rounds for reason in each.reasons)


def test_a_node_with_another_board_is_told_apart_and_one_whose_clock_steps_is_named(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = BOARDS
    ray.shutdown()
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={**QUIET, "env_vars": {"TOKENPOWER_SOURCE": scenario(tmp_path, one)}},
    )
    try:
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        project.on_machine_time()
        project.tests("@quick\ndef test_chat(energy): energy(lambda: generate(1.5))")
        unlike = scenario(tmp_path, other, "NVIDIA H200", driver="600.10 (simulated)")
        second = made.add_node(**QUIET, env_vars={"TOKENPOWER_SOURCE": unlike})
        result, run = project.measure("--energy-source=ray:simulated")
        result.stdout.fnmatch_lines("*1x Simulated H100 80GB, 1x NVIDIA H200*")
        [measured] = run.measurements
        ours, theirs = (measured.facts[f"{board}.node"] for board in (one, other))
        result.stdout.fnmatch_lines("*unlike boards in one run: *")
        said = measured.facts["unlike_boards"]
        assert isinstance(said, str)
        assert f"{ours} has 1x Simulated H100 80GB, driver 580" in said
        assert f"{theirs} has 1x NVIDIA H200, driver 600.10 (simulated)" in said
        assert measured.comparable
        assert {measured.key[f"gpu{at}.name"]: measured.key[f"gpu{at}.driver_major"] for at in (1, 2)} == {
            "NVIDIA H200": "600",
            "Simulated H100 80GB": "580",
        }
        assert measured.facts[f"{other}.driver"] == "600.10 (simulated)"
        assert measured.facts[f"{one}.node"] != measured.facts[f"{other}.node"]

        ray.shutdown()
        made.remove_node(second)
        steps = [{"kind": "clock_step", "from_s": at, "seconds": 0.1} for at in range(1, 120)]
        made.add_node(**QUIET, env_vars={"TOKENPOWER_SOURCE": scenario(tmp_path, other, faults=steps)})
        result, run = project.measure("--energy-source=ray:simulated")
        result.assert_outcomes(failed=1)
        [measured] = run.measurements
        assert not measured.comparable
        node = measured.facts[f"{other}.node"]
        for each in measured.rounds:
            assert any(f"ray:{node}: " in reason and "clock" in reason for reason in each.reasons)
    finally:
        ray.shutdown()
        made.shutdown()


def test_an_actor_sees_the_boards_that_its_node_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(source: str) -> Any:
        import os

        from pytest_tokenpower.errors import MeterUnavailable

        raise MeterUnavailable(f"the boards {os.environ['CUDA_VISIBLE_DEVICES']!r}")

    # The second variable is what Ray did of old to an actor that asks for no board.
    given = {"CUDA_VISIBLE_DEVICES": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    ray.shutdown()
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**QUIET, "num_gpus": 1, "env_vars": given}
    )
    try:
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        [meter] = ray_meters("auto", start)
        with pytest.raises(MeterUnavailable, match="the boards '1'"):
            meter.open(Clock())
    finally:
        ray.shutdown()
        made.shutdown()


def test_without_a_cluster_the_source_says_how_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()

    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect to GCS.\nand more")

    monkeypatch.setattr(ray, "init", init)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(MeterUnavailable, match=f"no Ray cluster answers at {address}: .*refused"):
            meters_for("ray")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(MeterUnavailable) as missing:
            meters_for("ray")
    assert str(missing.value) == (
        f"no Ray cluster answers at {address}: Failed to connect to GCS. (`ray start --head`, or RAY_ADDRESS)"
    )
