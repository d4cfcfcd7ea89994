"""The nodes of a Ray cluster: one telemetry actor a node drains that node's meters, each node a meter of this run."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pytest_tokenpower.errors import MeterError, MeterUnavailable, TokenPowerError
from pytest_tokenpower.meters.collector import Collector
from pytest_tokenpower.meters.processes import adopt
from pytest_tokenpower.meters.remote import Cursor, Feed, Hello, Piece, RemoteMeter
from pytest_tokenpower.meters.types import Device

ANSWER_TIMEOUT_S = 10.0

CONNECT_TIMEOUT_S = 5.0

START_TIMEOUT_S = 120.0
"""An actor's worker process may have to import this package from a network drive."""

Start = Callable[[str], tuple[Collector, Sequence[Device]]]
"""Starts the meters of a source: each node's actor gets it, since a source names its meters lazily."""

NODE_SOURCE_VARIABLE = "TOKENPOWER_SOURCE"
"""Set where Ray is started on a node: the source of that node, where it is not that of the others."""

BOARDS_KEPT = {f"RAY_EXPERIMENTAL_NOSET_{each}_VISIBLE_DEVICES": "1" for each in ("CUDA", "HIP", "ROCR")}
"""Older Rays (2.44) hide all boards from an actor that asks for none of them; with these it sees those of its node."""


class Telemetry:
    """The actor: a feed of its node's meters. Processes below the node's raylet, and the test run, are ours."""

    def __init__(self, source: str, start: Start, driver_host: str, driver_pid: int) -> None:
        self._start = start
        self._source = os.environ.get(NODE_SOURCE_VARIABLE, source)
        raylet = int(os.environ.get("RAY_RAYLET_PID", "0"))
        if raylet:
            adopt(raylet)
        self._raylet = raylet if raylet == os.getppid() else None
        if driver_host == socket.gethostname():
            adopt(driver_pid)
        self._feed: Feed | None = None

    def hello(self) -> Hello | str:
        """Start the meters; what they say where they cannot is returned, for a raised error comes with Ray's words."""
        if self._feed is None:
            try:
                self._feed = Feed(*self._start(self._source), ours=True)
            except TokenPowerError as error:
                return str(error)
        return self._feed.hello()

    def now_ns(self) -> int:
        """Return the node's monotonic clock."""
        assert self._feed is not None
        return self._feed.now_ns()

    def piece(self, cursor: bytes) -> bytes | str:
        """Return what came since a cursor, or why the node is not to be relied on any more."""
        assert self._feed is not None
        # An actor may outlive its raylet, and the workers of a model do not: what it reads then is no work of theirs.
        if self._raylet not in (None, os.getppid()):
            return f"its raylet (process {self._raylet}) is gone, and the node with it"
        return msgspec.msgpack.encode(self._feed.piece(msgspec.msgpack.decode(cursor, type=Cursor)))


class RayTransport:
    """Reads a node's feed through its actor."""

    def __init__(self, actor: Any, node: str) -> None:
        self._actor = actor
        self._node = node

    def hello(self) -> Hello:
        """Return the feed and its devices, under the node's name in the cluster."""
        found = self._get("hello", timeout_s=START_TIMEOUT_S)
        if isinstance(found, str):
            raise MeterUnavailable(f"node {self._node}: {found}")
        hello: Hello = found
        return msgspec.structs.replace(hello, host=self._node)

    def now_ns(self) -> int:
        """Return the node's clock."""
        return int(self._get("now_ns"))

    def piece(self, cursor: Cursor) -> Piece:
        """Return what came since a cursor."""
        answer = self._get("piece", msgspec.msgpack.encode(cursor))
        if isinstance(answer, str):
            raise MeterError(f"node {self._node}: {answer}")
        return msgspec.msgpack.decode(answer, type=Piece)

    def close(self) -> None:
        """End the actor, and with it the node's meters."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    def _get(self, method: str, *arguments: object, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        import ray

        gone = (
            f"node {self._node}: Ray was shut down in this process (ray.shutdown), and the node's telemetry actor with "
            "it: leave it connected until the tests are over"
        )
        # Ray would begin anew by itself.
        if not ray.is_initialized():
            raise MeterError(gone)
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise MeterError(
                f"node {self._node}: its telemetry actor gave no answer within {timeout_s:.0f} s"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise MeterError(
                f"node {self._node}: its telemetry actor died, or the node with it: {_first_line(error)}"
            ) from None
        except ray.exceptions.RayError as error:
            raise MeterError(
                f"node {self._node}: its telemetry actor failed: {_first_line(error)} (pytest-tokenpower must be "
                "installed on every node)"
            ) from None
        except Exception as error:
            # A Ray that was begun anew does not know the actor, and raises no error of its own.
            if type(error) is not Exception:
                raise
            raise MeterError(f"{gone}: {_first_line(error)}") from None


def ray_meters(source: str, start: Start) -> Sequence[RemoteMeter]:
    """Return a meter for each node of the cluster that RAY_ADDRESS names, or that runs on this machine.

    Args:
        source: What measures on each node; under ``auto`` nodes that have no accelerator are left out.
        start: What starts the meters there.

    Raises:
        MeterUnavailable: Ray is not installed, no cluster answers, or it has no node to measure.
    """
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise MeterUnavailable("ray is not installed: pip install 'pytest-tokenpower[ray]'") from None
    if not ray.is_initialized():
        _answers(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS")
            raise MeterUnavailable(
                f"no Ray cluster answers{f' at {address}' if address else ''}: {_first_line(error)} "
                "(`ray start --head`, or RAY_ADDRESS)"
            ) from None
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and (source != "auto" or set(node["Resources"]) & {"GPU", "TPU", "HPU"})
    ]
    if not nodes:
        raise MeterUnavailable(
            "no node of the Ray cluster has an accelerator: name what measures, as in --energy-source=ray:rapl"
        )
    actor = ray.remote(Telemetry)
    names = _names(nodes)
    return [
        RemoteMeter(
            f"ray:{names[node['NodeID']]}",
            RayTransport(
                actor.options(
                    num_cpus=0,
                    runtime_env={"env_vars": BOARDS_KEPT},
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                ).remote(source, start, socket.gethostname(), os.getpid()),
                names[node["NodeID"]],
            ),
            START_TIMEOUT_S + ANSWER_TIMEOUT_S,
        )
        for node in nodes
    ]


def _answers(address: str) -> None:
    """Raise MeterUnavailable where nobody listens at a cluster's address: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise MeterUnavailable(
            f"no Ray cluster answers at {address}: {error} (look at RAY_ADDRESS, and at `ray status` there)"
        ) from None


def _names(nodes: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """Name each node by its host; nodes of one host get their Ray id, too."""
    hosts = Counter(node["NodeManagerHostname"] for node in nodes)
    return {
        node["NodeID"]: node["NodeManagerHostname"]
        if hosts[node["NodeManagerHostname"]] == 1
        else f"{node['NodeManagerHostname']}#{node['NodeID'][:6]}"
        for node in nodes
    }


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
