"""Engines over HTTP through pytest: measured, failing, and on another machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_tokenpower.core.types import Provenance
from pytest_tokenpower.engines.openai.engine import OpenAIEngine
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.processes import adopted, is_in_tree, is_this_machine, listener_on
from pytest_tokenpower.meters.sources import SOURCES, meters_for
from pytest_tokenpower.meters.types import Device
from pytest_tokenpower.runner.checks import require_local_meter
from tests.support.http_stub import StubServer, serving
from tests.support.projects import Project

HEAD = """
from pytest_tokenpower.engines.openai.engine import OpenAIEngine
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.workloads import Concurrency, FixedShape

WORK = FixedShape(batch=4, prompt_tokens=24, new_tokens=8, vocab=500)


def engine(**options):
    return EngineSpec("openai", "tiny", base_url={url!r}, **options)

"""


@pytest.fixture
def server() -> Iterator[StubServer]:
    with serving(step_s=0.01) as server:
        yield server


def write(project: Project, server: StubServer, text: str) -> None:
    project.tests(HEAD.replace("{url!r}", repr(server.url)) + text)


def said(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_a_server_is_measured_with_estimated_phases(project: Project, server: StubServer) -> None:
    write(
        project,
        server,
        """
@pytest.mark.power_budget(min_rounds=2, max_rounds=2)
def test_it(energy):
    energy.declare(dtype="float32")
    energy.run(engine(), WORK)
""",
    )
    result, run = project.measure()
    result.assert_outcomes(passed=1)
    [measured] = run.measurements
    assert measured.comparable
    assert (measured.key["engine"], measured.key["model"]) == ("vllm-server", "tiny")
    assert measured.key["axis.dtype"] == "float32"
    assert measured.facts["engine.endpoint"] == "127.0.0.1"
    assert (measured.key["prompt_tokens"], measured.key["generated_tokens"]) == (96, 32)
    phases = [phase for one in measured.rounds for phase in one.phases.values()]
    assert phases
    assert all(phase.estimated for phase in phases)


def test_a_round_in_which_a_shared_server_works_for_others_is_invalid(
    project: Project, server: StubServer
) -> None:
    """The other tenant comes after the third batch, and is gone before the fifth."""
    number = StubServer.number

    def counted(self: StubServer, body: dict[str, object]) -> int:
        found = number(self, body)
        if found == 4 * 5:
            self.for_others += 40
        return found

    server.number = counted.__get__(server)  # type: ignore[method-assign]
    write(
        project,
        server,
        """
@pytest.mark.power_budget(min_rounds=4, max_rounds=4)
def test_it(energy):
    energy.run(engine(), WORK)
""",
    )
    _, run = project.measure()
    [measured] = run.measurements
    reasons = [one.reasons for one in measured.rounds]
    said = ("the server generated 40 tokens for others meanwhile, whose energy is in it",)
    assert sum(said[0] in each for each in reasons) == 1
    assert measured.facts["engine.other_requests"] == "watched"


@pytest.mark.parametrize("fault", ["500", "cut", "error event", "short"])
def test_a_server_that_fails_in_a_round_leaves_nothing_comparable(
    project: Project, server: StubServer, fault: str
) -> None:
    server.fault, server.at = fault, 6
    write(project, server, "def test_it(energy):\n    energy.run(engine(), WORK)\n")
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    assert server.url.removesuffix("/v1") in said(result)
    assert not any(measured.comparable for measured in run.measurements)
    # The batch that failed, and nothing after it.
    assert len(server.bodies) <= 8


def test_a_server_that_hangs_fails_its_test(project: Project, server: StubServer) -> None:
    server.fault, server.at = "stall", 6
    write(project, server, "def test_it(energy):\n    energy.run(engine(silence_s=0.3), WORK)\n")
    result, run = project.measure()
    result.assert_outcomes(failed=1)
    assert "the server sent nothing for 0.3 s" in said(result)
    assert not any(measured.comparable for measured in run.measurements)


REMOTE = """
@quick
def test_run(energy):
    energy.run(engine(), WORK)

@quick
def test_method(energy):
    with engine().start() as running:
        energy(running.generate, WORK.to_batch())

@quick
def test_compare(energy):
    energy.compare(baseline=generate, candidate=engine().workload(WORK), at_most="5%")
"""

METER = """
from pytest_tokenpower.meters.adapters.cpu_model import CpuModelMeter

class Rack(CpuModelMeter):
    name = "rack-7"

def pytest_tokenpower_meters(source):
    return [Rack()] if source == "rack" else None
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is another machine."""
    monkeypatch.setattr("pytest_tokenpower.engines.openai.engine.is_this_machine", lambda host: False)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("source", "meter"), [("simulated", "nvml"), ("model", "cpu-model")])
def test_an_endpoint_elsewhere_is_not_measured_here(
    project: Project, server: StubServer, source: str, meter: str
) -> None:
    write(project, server, REMOTE)
    result, run = project.measure(f"--energy-source={source}")
    result.assert_outcomes(failed=3)
    assert (
        f"the endpoint 127.0.0.1 is another machine, and {meter} measures this one: name a meter of that machine "
        "(--energy-source=remote:URL of a tokenpower serve-meter there, prometheus:URL or redfish:URL)"
    ) in said(result)
    assert not any(measured.comparable for measured in run.measurements)
    assert server.bodies == []


@pytest.mark.usefixtures("elsewhere")
def test_an_endpoint_elsewhere_with_a_meter_that_somebody_added(project: Project, server: StubServer) -> None:
    project.file("conftest.py", METER)
    write(project, server, REMOTE)
    result, run = project.measure("--energy-source=rack", "-k", "run or method")
    result.assert_outcomes(passed=2)
    assert all(measured.comparable for measured in run.measurements)
    assert server.bodies


def device(meter: str, provenance: Provenance = "measured") -> Device:
    return Device("one", "gpu", "board", meter, provenance)


@pytest.mark.parametrize(
    "source", [name for name in SOURCES if name.isalpha() and name not in ("auto", "simulated")]
)
def test_a_meter_of_this_machine_is_not_another_machines(source: str) -> None:
    [meter] = meters_for(source)
    with pytest.raises(UsageError, match=f"{meter.name} measures this one"):
        require_local_meter("t", SimpleNamespace(remote_host="gpu7"), [device(meter.name)])


def test_which_meters_reach_another_machine() -> None:
    there = SimpleNamespace(remote_host="gpu7")
    for meter in ("prometheus", "redfish", "somebody's"):
        require_local_meter("t", there, [device(meter)])
    require_local_meter("t", there, [device("nvml", "replayed")])
    require_local_meter("t", SimpleNamespace(remote_host=None), [device("nvml")])
    require_local_meter("t", print, [device("nvml")])
    with pytest.raises(UsageError, match="the endpoint gpu7 is another machine, and nvml measures this one"):
        require_local_meter("t", there, [device("redfish"), device("nvml")])


def test_this_machine_is_known_by_its_addresses() -> None:
    assert is_this_machine("localhost")
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("127.8.9.1")
    # TEST-NET-1 and -3 (RFC 5737) are nobody's.
    assert not is_this_machine("192.0.2.17")
    assert not is_this_machine("203.0.113.5")
    # An address that a route out of here would have, which is this machine's own.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.17", 9))
        except OSError:
            return
        assert is_this_machine(one.getsockname()[0])


OTHER = """
import sys, time
sys.path[:0] = {path!r}
from tests.support.http_stub import StubServer
print(StubServer().server_address[1], flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Return a server that is nobody's child: the number of its process, and its port."""
    # Its parent ends at once, so that it is not in the tests' tree.
    root = str(Path(__file__).parents[2])
    launcher = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", launcher, OTHER.replace("{path!r}", repr([root, *sys.path]))],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            yield pid, int(parent.stdout.readline())
        finally:
            os.kill(pid, 9)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_a_server_that_somebody_else_started_is_ours_while_it_is_measured(
    other_server: tuple[int, int],
) -> None:
    pid, port = other_server
    assert listener_on(port) == pid
    assert is_in_tree(pid) is False
    url = f"http://localhost:{port}/v1"
    with (
        closing(OpenAIEngine("tiny", base_url=url)) as first,
        closing(OpenAIEngine("tiny", base_url=url)) as engine,
    ):
        assert is_in_tree(pid)
        assert engine.remote_host is None
        assert engine.device_ids == ()  # it says that it runs on a CPU
        first.close()
        assert is_in_tree(pid)
    assert is_in_tree(pid) is False
    assert adopted() == frozenset()


def test_our_own_server_is_not_adopted() -> None:
    with serving() as server, closing(OpenAIEngine("tiny", base_url=server.url)):
        assert listener_on(server.server_address[1]) == os.getpid()
        assert adopted() == frozenset()


def test_nobody_listens_on_a_port() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert listener_on(one.getsockname()[1]) is None


def test_a_port_that_is_forwarded_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_tokenpower.engines.openai.engine.command_of", lambda pid: "ssh")
    with serving() as server:
        with closing(OpenAIEngine("tiny", base_url=server.url)) as engine:
            assert engine.remote_host == "127.0.0.1 (forwarded by ssh)"
            assert engine.device_ids is None
        with closing(OpenAIEngine("tiny", base_url=server.url, server_pid=os.getpid())) as engine:
            assert engine.remote_host is None
