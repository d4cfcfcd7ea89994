"""Asynchronous workloads: in asynchronous tests, in others, and what is said where neither can be."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.projects import Project

WORKLOADS = """
import asyncio
from functools import partial

pytestmark = quick
runs = []

async def chat(seconds=0.12, tokens=100):
    await asyncio.sleep(seconds)
    runs.append(asyncio.get_running_loop())
    return {"usage": {"prompt_tokens": 10, "completion_tokens": tokens}, "choices": [1]}

async def stream():
    for _ in range(2):
        await asyncio.sleep(0.07)
        yield TokenCount(5, 50)

async def batch():
    return await asyncio.gather(chat(), chat(), chat())

class Client:
    async def __call__(self, seconds):
        return await chat(seconds)
"""

IN_ASYNC_TESTS = (
    WORKLOADS
    + """
@pytest.mark.{mark}
async def test_coroutine(energy):
    result = await energy.async_run(chat, 0.12, tokens=100)
    assert result["usage"]["completion_tokens"] == 100
    # One warm-up and two rounds, on the loop of the test, of at least 0.2 s each.
    assert 3 <= len(runs) <= 5
    assert set(runs) == {asyncio.get_running_loop()}
    # By the seconds that it took: a sleep is longer on a busy machine.
    assert energy.result.joules_per_token == pytest.approx(300 * energy.result.figures["seconds"] / 100, rel=0.05)

@pytest.mark.{mark}
async def test_stream(energy):
    assert await energy.async_run(stream) == [TokenCount(5, 50)] * 2

@pytest.mark.{mark}
async def test_batch(energy):
    await energy.async_run(batch)

@pytest.mark.{mark}
async def test_lambda(energy):
    await energy.async_run(lambda: chat())

@pytest.mark.{mark}
async def test_block(energy):
    for _ in range(2):
        with energy.measure() as window:
            window.count(await batch())

@pytest.mark.{mark}
async def test_tasks(energy):
    async def client():
        with energy.measure() as window:
            window.count(await chat())
    await asyncio.gather(client(), client())

@pytest.mark.{mark}
async def test_two_at_once(energy):
    await asyncio.gather(energy.async_run(chat), energy.async_run(chat))

@pytest.mark.{mark}
async def test_not_awaited_by_energy(energy):
    energy(chat)

@pytest.mark.{mark}
async def test_lambda_not_awaited_by_energy(energy):
    energy(lambda: chat())

@pytest.mark.{mark}
async def test_compared(energy):
    energy.compare(baseline=chat, candidate=chat)

@pytest.mark.{mark}
@pytest.mark.power_budget(min_rounds=10, max_rounds=10)  # five blocks tell a doubling on a busy machine, too
async def test_compared_on_the_loop(energy):
    await energy.async_compare(baseline=chat, candidate=lambda: chat(0.24), at_most="10%")

@pytest.mark.{mark}
async def test_nothing_to_await(energy):
    await energy.async_run(generate)

@pytest.mark.{mark}
async def test_fails(energy):
    async def broken():
        raise OSError("server gone")
    await energy.async_run(broken)
"""
)


@pytest.fixture
def project(project: Project) -> Project:
    """Return an event loop lives on the machine's time."""
    project.on_machine_time()
    return project


def needs(module: str, plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {plugin}")


@pytest.mark.parametrize(
    ("plugin", "mark", "ini"),
    [
        pytest.param(
            "pytest_asyncio.plugin", "asyncio", "asyncio_default_fixture_loop_scope = function",
            marks=needs("pytest_asyncio", "pytest-asyncio"),
        ),
        pytest.param("anyio.pytest_plugin", "anyio", "", marks=needs("anyio", "anyio")),
    ],
)  # fmt: skip
def test_an_asynchronous_test_measures_in_rounds(project: Project, plugin: str, mark: str, ini: str) -> None:
    project.ini(ini)
    project.file(
        "conftest.py", "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    )
    project.tests(IN_ASYNC_TESTS.replace("{mark}", mark))
    result, run = project.measure("-p", plugin)
    result.assert_outcomes(passed=5, failed=8)
    measured = {one.test.rpartition("::")[2].partition("[")[0]: one for one in run.measurements}
    for name, counts in {
        "test_coroutine": (10, 100, 1), "test_stream": (10, 100, 2), "test_batch": (30, 300, 3),
        "test_lambda": (10, 100, 1), "test_block": (30, 300, 3),
    }.items():  # fmt: skip
        key = measured[name].key
        assert (key["prompt_tokens"], key["generated_tokens"], key["responses"]) == counts, name
        assert len(measured[name].rounds) == 2
    said = " ".join(result.stdout.str().split())
    assert "chat is asynchronous, and so is this test: write `await energy.async_run(chat, ...)`" in said
    assert "chat is asynchronous, and so is this test: write `await energy.async_compare(...)`" in said
    assert measured["test_compared_on_the_loop"].verdicts[0].kind == "regressed"
    assert "the workload returned a coroutine that nobody has awaited" in said
    assert "energy.async_run(generate): returns nothing to await: write energy(generate, ...)" in said
    assert said.count("a measurement began while another of the same board was open") >= 2
    assert "OSError: server gone" in said
    assert not any(
        one.comparable for name, one in measured.items() if name in ("test_tasks", "test_two_at_once")
    )


def test_a_test_that_is_not_asynchronous_runs_them_on_a_loop(project: Project) -> None:
    project.tests(
        WORKLOADS
        + """
def test_coroutine_function(energy):
    assert energy(chat, 0.12)["choices"] == [1]
    assert len(set(runs)) == 1

def test_partial(energy):
    energy(partial(chat, 0.12))

def test_object(energy):
    energy(Client(), 0.12)

def test_stream(energy):
    energy(stream)

def test_compare(energy):
    energy.compare(baseline=chat, candidate=partial(chat, 0.12), at_most="300%")

def test_leftover_tasks(energy):
    async def leaves_one():
        asyncio.get_running_loop().create_task(asyncio.sleep(60))
        return await chat()
    energy(leaves_one)

def test_lambda(energy):
    energy(lambda: chat())

def test_decorated(energy):
    def logged(*args):
        return chat(*args)
    energy(logged, 0.12)

def test_future(energy):
    loop = asyncio.new_event_loop()
    loop.close()
    energy(lambda: loop.create_future())

def test_coroutine(energy):
    energy(chat())

def test_fails(energy):
    async def broken():
        raise OSError("server gone")
    energy(broken)
"""
    )
    result, run = project.measure()
    result.assert_outcomes(passed=8, failed=3)
    said = " ".join(result.stdout.str().split())
    assert (
        "test_future: the workload returned a Future that nobody has awaited: give energy() the async" in said
    )
    assert "test_coroutine: energy(coroutine): that can be awaited once" in said
    assert "OSError: server gone" in said
    assert [one.key["generated_tokens"] for one in run.measurements if one.figures] == [100] * 8
    project.run(
        "--energy-disable", "-k", "function or partial or object or stream or compare"
    ).assert_outcomes(passed=5)


def test_disabled_an_asynchronous_workload_runs_once(project: Project) -> None:
    project.tests(
        WORKLOADS
        + "def test_it(energy):\n"
        + "    asyncio.run(energy.async_run(chat))\n    assert len(runs) == 1\n    energy.result\n    assert False\n"
    )
    result = project.run("--energy-disable", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*energy.result: nothing is measured (--energy-disable)"])


def test_a_loop_of_another_library_is_told_of(project: Project) -> None:
    """Trio's, played by what it says to everyone (sniffio) and by how it fails outside its loop."""
    pytest.importorskip("sniffio")
    project.file("trio/__init__.py", "from trio._timeouts import sleep\n")
    project.file(
        "trio/_timeouts.py",
        'async def sleep(seconds):\n    raise RuntimeError("must be called from async context")\n',
    )
    project.tests(
        """
import sniffio
import trio

async def chat():
    await trio.sleep(0.1)

async def breaks():
    raise RuntimeError("of its own")

def test_on_its_loop(energy):
    told = sniffio.current_async_library_cvar.set("trio")
    try:
        energy(chat)
    finally:
        sniffio.current_async_library_cvar.reset(told)

def test_outside(energy):
    energy(chat)

def test_another_error(energy):
    energy(breaks)
"""
    )
    result = project.run()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "chat is asynchronous, and so is this test: write `await energy.async_run(chat, ...)`",
            "chat needs trio's event loop, * give a function that calls trio.run(chat), or *",
            "E * RuntimeError: of its own",
        ]
    )


def test_what_is_measured_only_as_fixtures_are_torn_down_is_refused(project: Project) -> None:
    project.tests(
        """
@pytest.fixture
def late(energy):
    yield
    energy(generate, 0.12)

def test_it(late):
    pass
"""
    )
    result = project.run()
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*a measurement began when the test's body had ended*"])
