"""The adapter of OpenAI's protocol against a faithful server on loopback: contracts, what it asks, every fault."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_tokenpower.engines import Timeouts
from pytest_tokenpower.engines.execution import Execution
from pytest_tokenpower.engines.openai import other_requests
from pytest_tokenpower.engines.openai.client import Stream
from pytest_tokenpower.engines.openai.engine import KEY_VARIABLE, OpenAIEngine
from pytest_tokenpower.engines.protocol import Engine
from pytest_tokenpower.engines.spec import EngineSpec
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads import Concurrency, FixedShape, Poisson, PromptSet
from pytest_tokenpower.workloads.base import Batch
from tests.support.contract import (
    ClosingContract,
    EngineContract,
    Maker,
    ServingContract,
    check_bookkeeping,
    prompts,
)
from tests.support.http_stub import KEY, StubServer, serving, write_model

BATCH = Batch(prompts(3, 24), 6)


class _Served(Maker):
    servers: ClassVar[list[StubServer]] = []

    @classmethod
    def make(cls, models: Path) -> Engine:
        server = StubServer(root=str(write_model(models)), key=KEY)
        cls.servers.append(server)
        return OpenAIEngine("tiny", base_url=server.url, api_key=KEY)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _end_servers(cls) -> Iterator[None]:
        yield
        for server in cls.servers:
            server.end()
        cls.servers.clear()


class TestOpenAI(_Served, EngineContract, ServingContract):
    steps_exact = False


class TestOpenAIClosing(_Served, ClosingContract):
    pass


def engine_of(server: StubServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(options.pop("model", "tiny"), base_url=server.url, **options)


def test_what_is_asked_of_vllm() -> None:
    with serving() as server, closing(engine_of(server)) as engine:
        engine.generate(BATCH)
        engine.generate(BATCH)
    bodies = server.bodies
    assert sorted(body["prompt"] for body in bodies[:3]) == sorted(map(list, BATCH.prompts))
    # No round finds another's prompts in the prefix cache.
    assert len({body.pop("cache_salt") for body in bodies}) == 6
    for body in bodies:
        assert body.pop("prompt")
        assert body == {
            "model": "tiny",
            "max_tokens": 6,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "ignore_eos": True,
            "return_token_ids": True,
        }


def test_a_server_that_gives_counts_alone() -> None:
    fields = {"ignore_eos": None, "min_tokens": 6}
    with serving(kind="") as server, closing(engine_of(server, request_fields=fields)) as engine:
        execution = Execution(engine, BATCH)
        generation = execution()
        assert engine.identity.engine == "openai"
        assert engine.identity.version == "unknown"
        assert engine.identity.axes == {}
        assert engine.identity.facts == {"endpoint": "127.0.0.1", "other_requests": "not watched"}
        assert not hasattr(engine, "encode")
    # Honest: nobody said which tokens they were.
    assert generation.token_ids == ()
    assert generation.tokens == BATCH.tokens
    assert sum(step.generated_tokens for step in generation.steps) == 15
    assert set(server.bodies[0]) == {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "stream",
        "stream_options",
        "min_tokens",
    }


def test_sglang_says_what_it_runs() -> None:
    with serving(kind="sglang") as server, closing(engine_of(server)) as engine:
        identity = engine.identity
    assert (identity.engine, identity.version) == ("sglang-server", "0.5.9")
    # Its KV cache's type is "auto", which says nothing.
    assert identity.axes == {
        "dtype": "bfloat16",
        "quantization": None,
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
    }
    assert identity.facts["prefix_caching"] is False


def test_a_vllm_that_keeps_its_configuration_to_itself() -> None:
    path = "/models/llama-8b"
    with serving(dev_mode=False, model=path) as server, closing(engine_of(server, model=path)) as engine:
        identity = engine.identity
    assert (identity.engine, identity.version, identity.model) == ("vllm-server", "0.32.0", "llama-8b")
    assert identity.axes == {}
    assert identity.facts == {
        "endpoint": "127.0.0.1",
        "max_model_len": 2048,
        "prefix_caching": True,
        "block_size": 16,
        "other_requests": "watched",
    }


def test_texts_are_tokenized_by_the_server() -> None:
    with serving() as server, closing(engine_of(server)) as engine:
        execution = Execution(engine, PromptSet(("three small words", "two words"), 4))
        assert execution.batch.prompts == ((8, 8, 8), (6, 8))
        assert not execution.fingerprint.endswith("-bytes")
        execution()


def test_connections_are_used_again_and_requests_are_not_sent_again() -> None:
    with serving() as server, closing(engine_of(server)) as engine:
        for _ in range(3):
            engine.serve(BATCH, Concurrency(2))
        assert len(server.bodies) == 9
        assert len(engine._client._made) == 2


def test_a_spec_starts_no_process_around_it() -> None:
    with serving() as server:
        spec = EngineSpec("openai", "tiny", base_url=server.url, timeouts=Timeouts(batch_s=30))
        with spec.start() as engine:
            assert isinstance(engine, OpenAIEngine)
            assert (
                Execution(engine, FixedShape(2, 8, 3, vocab=500, arrivals=Poisson(100.0)))().tokens.prompt
                == 16
            )
        with pytest.raises(UsageError, match=r"starts no process that env=\['A'\] could be for"):
            EngineSpec("openai", "tiny", base_url=server.url, env={"A": "1"}).load()


def test_the_estimate_against_what_the_engine_did() -> None:
    with serving(step_s=0.02) as server, closing(engine_of(server)) as engine:
        engine.generate(BATCH)
        del server.steps[:]
        batch = Batch(prompts(4, 40), 12)
        found = engine.serve(batch, Concurrency(2)).steps
        true = list(server.steps)
    assert sum(step.prompt_tokens for step in found) == sum(step.prompt_tokens for step in true)
    assert sum(step.generated_tokens for step in found) == sum(step.generated_tokens for step in true)
    for before, after in pairwise(found):
        assert before.end_ns <= after.start_ns
    # A chunk is at the client after its step, and a prompt is not prefilled before it was sent.
    ends = [step.end_ns for step in true if step.prompt_tokens]
    marks = [step.end_ns for step in found if step.prompt_tokens]
    assert all(min(mark - end for end in ends if end <= mark) >= 0 for mark in marks)


def asked(engine: Engine) -> str:
    """Run a batch, and ask what else the engine did meanwhile."""
    generation = engine.generate(BATCH)
    assert generation.unsound is not None
    return generation.unsound()


def test_two_engines_of_this_process_are_no_others_to_each_other() -> None:
    with serving() as server, ExitStack() as stack:
        one = stack.enter_context(closing(OpenAIEngine("tiny", base_url=server.url)))
        assert asked(one) == ""
        other = stack.enter_context(closing(OpenAIEngine("tiny", base_url=server.url)))
        assert [asked(engine) for engine in (other, one, one, other)] == [""] * 4
        server.for_others += 40
        said = "the server generated 40 tokens for others meanwhile, whose energy is in it"
        assert [asked(engine) for engine in (one, other)] == [said, ""]


def test_a_server_under_two_names_is_one_server() -> None:
    with serving() as server, ExitStack() as stack:
        names = (server.url, server.url.replace("127.0.0.1", "localhost"))
        one, other = (stack.enter_context(closing(OpenAIEngine("tiny", base_url=url))) for url in names)
        assert [asked(engine) for engine in (one, other, one)] == [""] * 3


def test_what_a_failed_batch_generated_was_for_nobody_else() -> None:
    with serving(fault="cut", at=3) as server, closing(OpenAIEngine("tiny", base_url=server.url)) as engine:
        with pytest.raises(EngineError):
            engine.generate(BATCH)
        assert server.sent
        assert asked(engine) == ""
        server.for_others += 40
        assert asked(engine).startswith("the server generated 40 tokens for others")


def test_a_server_that_does_not_answer_after_a_failed_batch_is_not_vouched_for() -> None:
    with serving(fault="cut", at=3) as server, closing(OpenAIEngine("tiny", base_url=server.url)) as engine:
        server.tells = False
        with pytest.raises(EngineError):
            engine.generate(BATCH)
        server.tells = True
        said = "whether others used the server is not known: it did not answer after a batch that failed"
        assert [asked(engine) for _ in range(2)] == [said, ""]


def test_where_the_server_tells_its_counts_no_more_nothing_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server, closing(OpenAIEngine("tiny", base_url=server.url)) as engine:
        server.tells = False
        with monkeypatch.context() as hurry:
            hurry.setattr(other_requests, "_LAG_S", 0.05)
            for _ in range(2):
                assert (
                    asked(engine)
                    == "whether others used the server is not known: its /metrics no longer says"
                )
        server.tells, server.for_others = True, 40
        assert asked(engine).startswith("the server generated 40 tokens for others")
        assert asked(engine) == ""


def test_what_the_server_s_cache_held_is_counted_apart() -> None:
    with serving(fault="cached", at=2) as server, closing(engine_of(server)) as engine:
        generation = engine.generate(BATCH)
    assert generation.tokens == replace(BATCH.tokens, cached_prompt=16)
    check_bookkeeping(BATCH, generation)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("500", r"/v1/completions: answered 500: .*it cannot be done.*Look at the server's log"),
        ("401", r"answered 401: .*Give the server's key: TOKENPOWER_OPENAI_KEY, or api_key"),
        ("429", r"answered 429: .*It is not sent a second time: lower the load"),
        ("field", r"answered 400: .*ignore_eos.*request_fields=\{'name': None\} leaves it out"),
        ("gone", r"answered 404: .*does not offer the model 'tiny'; it offers another"),
        ("hang up", r"/v1/completions: the request failed \(.*\); it is not sent a second time"),
        ("cut", r"response \d: the connection broke \(.*\) after 2 of 6 tokens: look at the server's log"),
        (
            "no done",
            r"response \d: the stream stopped mid-way, without its closing \[DONE\], after 6 of 6 tokens",
        ),
        ("no stream", r"answered a request to stream with application/json: .*all at once"),
        ("malformed", r"a chunk of the stream is malformed \(.*\): \{\"choices\": \[\{\"text\":"),
        ("html", r"the stream holds what is no event: <html>Bad gateway</html>"),
        (
            "error event",
            r"response \d: the server reports an error after 2 of 6 tokens: .*out of memory, \*\*\*",
        ),
        ("other response", r"a chunk is of response 1, one response was asked for"),
        ("short", r"stopped after 3 of 6 tokens \(finish_reason stop\): .*ignore_eos"),
        ("cached more", r"the server counts 25 cached of 24 prompt tokens"),
        ("adds a token", r"the server counts 25 prompt tokens, it was sent 24 token ids"),
        ("loses ids", r"the server reports 6 tokens in its usage and sent 5 token ids"),
        ("hang", r"the server sent nothing for 0\.4 s, with [123] of 3 requests unfinished: it hangs"),
        ("stall", r"the server sent nothing for 0\.4 s, with [123] of 3 requests unfinished: it hangs"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_sent_again(fault: str, complaint: str) -> None:
    hangs = fault in ("hang", "stall")
    options = {"api_key": KEY, "silence_s": 0.4 if hangs else 60.0}
    with serving(fault=fault, at=2) as server, closing(engine_of(server, **options)) as engine:
        with pytest.raises(EngineError, match=complaint) as found:
            engine.generate(BATCH)
        text = str(found.value)
        assert KEY not in text
        assert f"http://127.0.0.1:{server.server_address[1]}" in text
        assert len(server.bodies) <= 3
        server.model = "tiny"
        # What was under way has been ended, and the engine works on.
        if not hangs:
            assert engine.generate(BATCH).tokens == BATCH.tokens


def test_counts_of_which_nobody_speaks() -> None:
    said = "nothing in the stream says how many tokens it has"
    with (
        serving(kind="", fault="no usage") as server,
        closing(engine_of(server)) as engine,
        pytest.raises(EngineError, match=said),
    ):
        engine.generate(BATCH)


def test_comments_and_other_fields_of_the_stream_are_left_alone() -> None:
    with serving(fault="comments") as server, closing(engine_of(server)) as engine:
        assert engine.generate(BATCH).tokens == BATCH.tokens


def test_a_batch_that_takes_too_long() -> None:
    said = r"the batch took more than 0\.3 s, with [123] of 3 requests unfinished"
    options = {"timeouts": Timeouts(batch_s=0.3)}
    with (
        serving(step_s=0.1) as server,
        closing(engine_of(server, **options)) as engine,
        pytest.raises(EngineError, match=said),
    ):
        engine.generate(BATCH)


def test_the_first_failure_ends_the_batch_and_its_requests() -> None:
    # Nobody waits for requests that are due in an hour, and those under way are broken off.
    with serving(fault="500", at=2, step_s=0.02) as server, closing(engine_of(server)) as engine:
        with pytest.raises(EngineError, match="answered 500"):
            engine.serve(Batch(prompts(3, 8), 500), Poisson(20.0, seed=1))
        server.wait_for_abort(1)


@pytest.mark.parametrize(
    ("options", "model", "complaint"),
    [
        ({"fault": "redirect"}, "tiny", r"/v1/models: answered 307: .*give the URL that it redirects to"),
        ({"fault": "not openai"}, "tiny", r"/v1/models: answered no list of models"),
        ({}, "llama", r"does not offer the model 'llama'; it offers tiny"),
        ({"key": "another"}, "tiny", r"/v1/models: answered 401: .*Give the server's key"),
    ],
)
def test_servers_that_cannot_be_used(options: dict[str, Any], model: str, complaint: str) -> None:
    with serving(**options) as server, pytest.raises(EngineError, match=complaint) as found:
        engine_of(server, model=model, api_key=KEY)
    assert KEY not in str(found.value)


def test_a_path_that_is_no_api() -> None:
    with (
        serving() as server,
        pytest.raises(EngineError, match="answered 404: this is no server of OpenAI's protocol"),
    ):
        OpenAIEngine("tiny", base_url=server.url.replace("/v1", "/elsewhere"))


def test_nobody_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        with pytest.raises(
            EngineError, match=rf"http://localhost:{port}/v1/models: cannot connect .*is the server"
        ):
            OpenAIEngine("tiny", base_url=f"http://localhost:{port}/v1")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("localhost:8000", "base_url='localhost:8000': must look like http://localhost:8000/v1"),
        ("ftp://me:secret@host/v1?key=secret", "base_url='host/v1': must look like"),
        ("http://", "must look like"),
        ("http://me:secret@host/v1", "base_url of host: leave user, password and query out"),
        ("http://host/v1?key=secret", "base_url of host: leave user, password and query out"),
        ("http://host:port/v1", "is not a URL"),
    ],
)
def test_urls_that_cannot_be(url: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)) as found:
        OpenAIEngine("tiny", base_url=url)
    assert "secret" not in str(found.value)


def test_a_host_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        EngineError, match=r"the host gpu7 is not known \(Name or service not known\): look at base_url"
    ):
        OpenAIEngine("tiny", base_url="http://gpu7:8000/v1")


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving(key=KEY) as server, closing(engine_of(server)) as engine:
        assert engine.generate(BATCH).tokens == BATCH.tokens
        assert KEY not in repr(engine.identity)


def test_streams_are_told_apart_in_messages() -> None:
    stream = Stream("http://host/v1/completions, response 3", 4, 8)
    with pytest.raises(EngineError, match=r"response 3: the stream stopped mid-way.* before the first token"):
        stream.finish()
