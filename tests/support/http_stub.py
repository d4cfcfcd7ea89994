"""A server of OpenAI's protocol on loopback: the scheduler of :mod:`stub` behind HTTP, with faults on demand."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from pytest_tokenpower.engines.protocol import Step
from tests.support.stub import VOCAB, FakeScheduler, Request

KEY = "sk-very-secret"
POSITIONS = 2048

_MODEL_CONFIG = {"dtype": "torch.float32", "quantization": None, "max_model_len": POSITIONS}
VLLM_CONFIG = {
    "cache_config": {"cache_dtype": "auto", "enable_prefix_caching": False, "block_size": 16},
    "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1},
    "scheduler_config": {"max_num_batched_tokens": 512, "async_scheduling": True},
    "load_config": {"load_format": "auto"},
    "device_config": {"device": "cpu"},
    "compilation_config": {"mode": 0, "cudagraph_mode": 0},
}


class StubServer(ThreadingHTTPServer):
    """``kind`` "vllm" speaks as vLLM does, "sglang" as SGLang; any other gives counts at the end, and no ids.

    ``fault`` strikes in the completion number ``at`` (from 1) and after ``good_tokens`` of it, where it is one of a
    stream; ``key`` is asked for where it is set. ``steps`` are what the engine did, exactly.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        *,
        kind: str = "vllm",
        model: str = "tiny",
        root: str | None = None,
        fault: str = "",
        at: int = 1,
        good_tokens: int = 2,
        key: str | None = None,
        budget: int = 512,
        step_s: float = 0.008,
        dev_mode: bool = True,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.kind, self.model, self.root = kind, model, root
        self.fault, self.at, self.good_tokens = fault, at, good_tokens
        self.key, self.dev_mode = key, dev_mode
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.steps: list[Step] = []
        self.aborted = 0
        self.sent: list[list[int]] = []
        self.for_others = 0
        self.tells = True
        self._scheduler = FakeScheduler(budget)
        self._step_s = step_s
        self._numbers = itertools.count(1)
        self._outputs: dict[str, queue.Queue[list[int]]] = {}
        self._lock = threading.Condition()
        self._ending = threading.Event()
        for work in (lambda: self.serve_forever(0.02), self._run):
            threading.Thread(target=work, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def end(self) -> None:
        self._ending.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away as they like."""

    def wait_for_end(self, seconds: float) -> None:
        self._ending.wait(seconds)

    def number(self, body: dict[str, Any]) -> int:
        with self._lock:
            self.bodies.append(body)
            return next(self._numbers)

    def submit(self, name: str, prompt: list[int], new_tokens: int) -> queue.Queue[list[int]]:
        with self._lock:
            outputs: queue.Queue[list[int]] = queue.Queue()
            self._outputs[name] = outputs
            self._scheduler.requests.append(Request(name, prompt, new_tokens))
            self._lock.notify()
        return outputs

    def abort(self, name: str) -> None:
        with self._lock:
            self.aborted += 1
            self._scheduler.requests = [each for each in self._scheduler.requests if each.req_id != name]
            self._lock.notify_all()

    def wait_for_abort(self, requests: int) -> None:
        """Until so many clients have gone away in the middle of their stream."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.aborted >= requests, timeout=10)

    def _run(self) -> None:
        while not self._ending.is_set():
            with self._lock:
                idle = not self._scheduler.requests
                self._lock.wait_for(lambda: self._scheduler.requests, timeout=0.05)
            if idle:
                time.sleep(0.008)  # what is sent at once is there at once
            start_ns = time.monotonic_ns()
            with self._lock:
                if not self._scheduler.requests:
                    continue
                scheduled = self._scheduler.schedule()
            time.sleep(self._step_s)
            with self._lock:
                done = self._scheduler.update_from_output(scheduled, None)
                prompt, decoded = self._scheduler.truth[-1]
                self.steps.append(Step(start_ns, time.monotonic_ns(), prompt, decoded))
                for output in done[0].outputs:
                    if output.new_token_ids:
                        self.sent.append(output.new_token_ids)
                        self._outputs[output.request_id].put(output.new_token_ids)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def stub(self) -> StubServer:
        return cast(StubServer, self.server)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        stub, path = self.stub, self.path.partition("?")[0]
        stub.asked.append(self.path)
        if stub.fault == "redirect":
            return self._answer(307, {}, {"Location": "/elsewhere"})
        if stub.fault == "not openai":
            return self._answer(200, {"hello": "world"})
        if path.startswith("/v1/") and self._unauthorised():
            return None
        entry = {"id": stub.model, "object": "model", "owned_by": stub.kind, "root": stub.root or stub.model}
        if stub.kind in ("vllm", "sglang"):
            entry["max_model_len"] = POSITIONS  # type: ignore[assignment]
        pages: Mapping[str, object] = {"/v1/models": {"object": "list", "data": [entry]}, "/health": {}}
        config = {**VLLM_CONFIG, "model_config": {**_MODEL_CONFIG, "model": entry["root"]}}
        if stub.kind == "vllm":
            pages = {**pages, "/version": {"version": "0.32.0"}}
            if stub.dev_mode:
                pages = {**pages, "/server_info": {"vllm_config": config}}
            if path == "/metrics" and stub.tells:
                generated = sum(len(tokens) for tokens in stub.sent) + stub.for_others
                return self._send(
                    200,
                    'vllm:cache_config_info{block_size="16",enable_prefix_caching="True"} 1\n'
                    f'vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {generated:.1f}\n',
                )
        if stub.kind == "sglang":
            told = {"version": "0.5.9", "dtype": "bfloat16", "quantization": None, "kv_cache_dtype": "auto"}
            pages = {
                **pages,
                "/server_info": {**told, "tp_size": 2, "pp_size": 1, "disable_radix_cache": True},
            }
        if path not in pages:
            return self._answer(404, {"detail": "Not Found"})
        return self._answer(200, pages[path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._unauthorised():
            return None
        if self.path == "/tokenize" and self.stub.kind == "vllm":
            return self._answer(200, {"tokens": [3 + len(word) for word in body["prompt"].split()]})
        if self.path != "/v1/completions":
            return self._answer(404, {"detail": "Not Found"})
        number = self.stub.number(body)
        fault = self.stub.fault if number == self.stub.at else ""
        if body["model"] != self.stub.model or fault == "gone":
            self.stub.model = "another" if fault == "gone" else self.stub.model
            return self._error(404, f"The model `{body['model']}` does not exist.")
        if fault.isdigit():
            return self._error(int(fault), f"it cannot be done with {self.headers['Authorization']}")
        if fault == "field":
            return self._error(400, "Unrecognized request argument supplied: ignore_eos")
        if fault == "hang up":
            return self.cut()
        if fault == "hang":
            return self.stub.wait_for_end(30)
        if fault == "no stream":
            return self._answer(200, {"choices": [{"text": "all at once"}]})
        if max(body["prompt"]) >= VOCAB:
            return self._error(500, "EngineCore encountered an issue.")
        name = f"cmpl-{number}"
        outputs = self.stub.submit(name, body["prompt"], body["max_tokens"])
        try:
            self._stream(body, outputs, fault)
        except OSError:
            self.stub.abort(name)
            self.close_connection = True

    def _stream(self, body: dict[str, Any], outputs: queue.Queue[list[int]], fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        rich = self.stub.kind in ("vllm", "sglang")
        options = body.get("stream_options", {})
        prompt = len(body["prompt"]) + (fault == "adds a token")
        wanted = body["max_tokens"]
        ids: list[int] = []
        while len(ids) < wanted:
            ids += (tokens := outputs.get(timeout=30))
            if len(ids) > self.stub.good_tokens and fault in _MIDWAY:
                _MIDWAY[fault](self)
                if fault != "comments":
                    return
            stopped = fault == "short" and len(ids) > self.stub.good_tokens
            reason = "stop" if stopped else "length" if len(ids) == wanted else None
            choice: dict[str, Any] = {"index": 0, "text": "word ", "logprobs": None, "finish_reason": reason}
            if rich and body.get("return_token_ids"):
                choice["token_ids"] = tokens[:-1] if fault == "loses ids" and reason else tokens
            event: dict[str, Any] = {"id": "x", "object": "text_completion", "choices": [choice]}
            if options.get("continuous_usage_stats"):
                event["usage"] = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
            self.event(event)
            if stopped:
                break
        if options.get("include_usage") and fault != "no usage":
            usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
            if fault.startswith("cached"):
                usage["prompt_tokens_details"] = {"cached_tokens": 25 if fault == "cached more" else 16}
            self.event({"id": "x", "object": "text_completion", "choices": [], "usage": usage})
        if fault != "no done":
            self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, document: object) -> None:
        self.chunk(f"data: {json.dumps(document)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)

    def _unauthorised(self) -> bool:
        if self.stub.key is None or self.headers["Authorization"] == f"Bearer {self.stub.key}":
            return False
        self._answer(401, {"error": "Unauthorized"})
        return True

    def _error(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "x", "param": None, "code": status}})

    def _answer(self, status: int, document: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(document), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


_MIDWAY: Mapping[str, Any] = {
    "cut": _Handler.cut,
    "stall": lambda handler: handler.stub.wait_for_end(30),
    "malformed": lambda handler: handler.chunk(b'data: {"choices": [{"text": \n\n'),
    "html": lambda handler: handler.chunk(b"<html>Bad gateway</html>\n"),
    "error event": lambda handler: handler.event(
        {"error": {"message": f"out of memory, {KEY}", "code": 500}}
    ),
    "other response": lambda handler: handler.event({"choices": [{"index": 1, "text": "x"}]}),
    "comments": lambda handler: handler.chunk(b": keep-alive\r\n\r\nevent: x\r\nid: 1\r\nretry: 3\r\n\r\n"),
}


def write_model(folder: Path) -> Path:
    """Return what a server's model folder needs to be recognised: its configuration."""
    path = folder / "stub-model"
    path.mkdir(exist_ok=True)
    config = {"vocab_size": VOCAB, "tokenpower_architecture": "tiny", "tokenpower_weights": "random, seed 0"}
    (path / "config.json").write_text(json.dumps(config))
    return path


@contextmanager
def serving(**options: Any) -> Iterator[StubServer]:
    """Return a server for the block."""
    server = StubServer(**options)
    try:
        yield server
    finally:
        server.end()
