"""HTTP to one server of OpenAI's protocol: single questions, and batches of streamed completions."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import msgspec

from pytest_tokenpower.engines._arrivals import Admission, EventLoop, cancel
from pytest_tokenpower.engines._estimated_steps import Trace
from pytest_tokenpower.errors import EngineError, UsageError
from pytest_tokenpower.workloads.arrivals import Arrivals


@dataclass(frozen=True)
class Endpoint:
    """Where a server is: ``root`` is its URL without ``/v1``, and with nothing that must not be shown."""

    root: str
    host: str
    port: int

    @classmethod
    def of(cls, base_url: str) -> Endpoint:
        """Of ``http://host:8000/v1``, with or without the last part; raises UsageError."""
        try:
            parts = urlsplit(base_url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise UsageError(f"base_url is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # A password stands before the @, a key may stand behind the ?.
            shown = str(base_url).rpartition("@")[2].partition("?")[0]
            raise UsageError(f"base_url={shown!r}: must look like http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise UsageError(
                f"base_url of {parts.hostname}: leave user, password and query out of the URL, which is shown in "
                "messages; a key goes into TOKENPOWER_OPENAI_KEY or api_key"
            )
        path = parts.path.rstrip("/").removesuffix("/v1").removesuffix("/v1/completions")
        return cls(f"{parts.scheme}://{parts.netloc}{path}", parts.hostname, port)


SHOWN = 300
"""So many characters of what a server sent are shown in a message."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None


@dataclass(frozen=True)
class Response:
    """A whole response; ``token_ids`` is None where the server does not give them."""

    trace: Trace
    tokens: int
    cached: int
    token_ids: tuple[int, ...] | None


class Stream:
    """Collects a response to a prompt of so many tokens; ``where`` begins the messages of its errors."""

    def __init__(self, where: str, prompt_tokens: int, new_tokens: int) -> None:
        self.sent_ns = 0
        self._where = where
        self._prompt_tokens = prompt_tokens
        self._new_tokens = new_tokens
        self._rest = b""
        self._ids: list[int] | None = []
        self._usage: _Usage | None = None
        self._counted = 0
        # Of each chunk its arrival and its tokens; None where the server does not say how many.
        self._chunks: list[tuple[int, int | None]] = []
        self._closing_chunk = False
        self._finish: str | None = None
        self.done = False

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """Take what was read; raises EngineError for what is no stream of completions, or reports a failure."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for raw in lines:
            line = raw.strip()
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), arrived_ns)
            elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise EngineError(f"{self._where}: the stream holds what is no event: {shown(line)}")

    def _event(self, data: bytes, arrived_ns: int) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(
                f"{self._where}: a chunk of the stream is malformed ({error}): {shown(data)}"
            ) from None
        if event.object == "error" or event.error is not None:
            raise EngineError(f"{self._where}: the server reports an error {self._so_far()}: {shown(data)}")
        if event.usage is not None:
            self._usage = event.usage
        for choice in event.choices:
            if choice.index != 0:
                raise EngineError(
                    f"{self._where}: a chunk is of response {choice.index}, one response was asked for: {shown(data)}"
                )
            self._choice(choice, event.usage, arrived_ns)

    def _choice(self, choice: _Choice, usage: _Usage | None, arrived_ns: int) -> None:
        self._finish = choice.finish_reason or self._finish
        tokens: int | None = None
        if choice.token_ids is None:
            self._ids = None
        elif self._ids is not None:
            self._ids += choice.token_ids
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
        elif usage is not None and usage.completion_tokens is not None:
            tokens = max(usage.completion_tokens - self._counted, 0)
        self._counted += tokens or 0
        if tokens is None or tokens > 0:
            self._chunks.append((arrived_ns, tokens))
            self._closing_chunk = tokens is None and not choice.text and choice.finish_reason is not None

    def _so_far(self) -> str:
        if not self._chunks:
            return "before the first token"
        known = str(self._counted) if self._chunks[-1][1] is not None else f"{len(self._chunks)} chunks"
        return f"after {known} of {self._new_tokens} tokens"

    def broken(self, reason: str) -> EngineError:
        """Make the error for a connection that ended by itself."""
        return EngineError(f"{self._where}: {reason} {self._so_far()}: look at the server's log")

    def finish(self) -> Response:
        """Return the response that the server has ended; raises EngineError unless it is whole and as asked for."""
        if not self.done:
            raise self.broken("the stream stopped mid-way, without its closing [DONE],")
        total = self._total()
        if total != self._new_tokens:
            reason = f" (finish_reason {self._finish})" if self._finish else ""
            raise EngineError(
                f"{self._where}: stopped after {total} of {self._new_tokens} tokens{reason}: rounds must do the same "
                "work, so that the server must run through end-of-sequence (ignore_eos, as vLLM, SGLang and llama.cpp "
                "call it); request_fields={...} adds what another server calls it"
            )
        usage = self._usage
        if usage is not None and usage.prompt_tokens != self._prompt_tokens:
            raise EngineError(
                f"{self._where}: the server counts {usage.prompt_tokens} prompt tokens, it was sent "
                f"{self._prompt_tokens} token ids: it changes prompts (adds a token, or cuts them), so that the "
                "energy would be of other work than the workload says"
            )
        details = None if usage is None else usage.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        if not 0 <= cached <= self._prompt_tokens:
            raise EngineError(
                f"{self._where}: the server counts {cached} cached of {self._prompt_tokens} prompt tokens"
            )
        return Response(
            Trace(self.sent_ns, self._prompt_tokens - cached, self._spread(total)),
            total,
            cached,
            None if self._ids is None else tuple(self._ids),
        )

    def _total(self) -> int:
        said = None if self._usage is None else self._usage.completion_tokens
        ids = None if self._ids is None else len(self._ids)
        if said is None and ids is None:
            raise EngineError(
                f"{self._where}: nothing in the stream says how many tokens it has: the server must report usage "
                "(stream_options={'include_usage': true}) or token ids"
            )
        if said is not None and ids is not None and said != ids:
            raise EngineError(
                f"{self._where}: the server reports {said} tokens in its usage and sent {ids} token ids"
            )
        return said if said is not None else ids or 0

    def _spread(self, total: int) -> Sequence[tuple[int, int]]:
        """Give the chunks their tokens; those that nobody counted share what is left, each one where that fits."""
        unknown = [at for at, (_, tokens) in enumerate(self._chunks) if tokens is None]
        left = total - self._counted
        if self._closing_chunk and len(unknown) > left:
            unknown.pop()  # it only says why the response ended
        counts = {
            at: -(-left * (nth + 1) // len(unknown)) + (-left * nth // len(unknown))
            for nth, at in enumerate(unknown)
        }
        chunks = [
            (arrived, counts.get(at, 0) if n is None else n) for at, (arrived, n) in enumerate(self._chunks)
        ]
        return tuple((arrived, tokens) for arrived, tokens in chunks if tokens)


_decode = msgspec.json.Decoder(_Event).decode


def shown(data: bytes) -> str:
    """Show the beginning of what a server sent, as text on one line."""
    text = " ".join(data[: 4 * SHOWN].decode("utf-8", "replace").split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


KEEP_OPEN_S = 2.0
"""An idle connection is used again for so long. Servers close theirs after some time (uvicorn: 5 s), and a request that
meets this would fail."""

CHECK_S = 0.1
"""Interval at which a running batch looks at its limits."""

QUESTION_S = 30.0
"""So long a server may take to answer a question."""


class Refused(EngineError):
    """A response that is no success; ``status`` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The status of a response, its body, and that as JSON (None where it is none)."""

    status: int
    body: bytes
    document: Any


@dataclass(frozen=True)
class Limits:
    """Seconds: to connect, without a chunk from any request that runs, and for a whole batch."""

    connect_s: float
    silence_s: float
    batch_s: float


class Client:
    """Speaks to an endpoint until it is closed; ``api_key`` is sent as a bearer token and appears in no message."""

    def __init__(self, endpoint: Endpoint, api_key: str | None, limits: Limits) -> None:
        self._endpoint = endpoint
        self._key = api_key
        self._limits = limits
        self._heard_s = 0.0
        self._loop = EventLoop("tokenpower-openai")
        self._open = True
        self._tls: ssl.SSLContext | bool = False
        self._made: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []

    def get(self, path: str, *, within_s: float = QUESTION_S) -> Answer:
        """GET a path below the root; raises EngineError where no answer comes, whatever its status."""
        return self._loop.run(self._ask("GET", path, None, within_s))

    def post(self, path: str, document: object) -> Answer:
        """POST a JSON document; raises as :meth:`get`."""
        return self._loop.run(self._ask("POST", path, msgspec.json.encode(document), QUESTION_S))

    def complete(self, requests: Sequence[tuple[Mapping[str, Any], Stream]], arrivals: Arrivals) -> None:
        """POST each to /v1/completions when it is due, and have the responses collected in their streams.

        Raises EngineError at the first request that fails; the others are ended then.
        """
        bodies = [msgspec.json.encode(body) for body, _ in requests]
        try:
            self._loop.run(self._complete(bodies, [stream for _, stream in requests], arrivals))
        except Refused:
            raise
        except EngineError as error:
            raise EngineError(self._without_key(str(error))) from None

    def close(self) -> None:
        """Close the connections and end the thread; safe to call twice."""
        if not self._open:
            return
        self._loop.run(self._disconnect())
        self._open = False
        self._loop.close(QUESTION_S)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """One that nobody else uses: a pool of many looks at all of its connections for each request."""
        http = self._idle.pop() if self._idle else self._connect()
        try:
            yield http
        except BaseException:
            # Whatever is left on the wire is not for the next request.
            self._made.remove(http)
            await http.aclose()
            raise
        self._idle.append(http)

    def _connect(self) -> httpx.AsyncClient:
        if self._tls is False and self._endpoint.root.startswith("https:"):
            self._tls = httpx.create_ssl_context()  # slow, so once
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        http = httpx.AsyncClient(
            headers=headers,
            verify=self._tls,
            timeout=httpx.Timeout(None, connect=self._limits.connect_s, pool=self._limits.connect_s),
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEP_OPEN_S),
            # A server that is measured is reached directly: a proxy would hold chunks back.
            trust_env=False,
        )
        self._made.append(http)
        return http

    async def _disconnect(self) -> None:
        for http in self._made:
            await http.aclose()

    async def _ask(self, method: str, path: str, body: bytes | None, within_s: float) -> Answer:
        url = self._endpoint.root + path
        try:
            async with self._connection() as http:
                response = await asyncio.wait_for(http.request(method, url, content=body), within_s)
        except asyncio.TimeoutError:
            raise EngineError(f"{url}: no answer within {within_s:g} s") from None
        except Exception as error:
            self._unreachable(url, error)
        try:
            document = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            document = None
        return Answer(response.status_code, response.content, document)

    async def _complete(self, bodies: Sequence[bytes], streams: Sequence[Stream], arrivals: Arrivals) -> None:
        admission = Admission(arrivals, len(bodies))
        tasks: list[asyncio.Task[None]] = []
        ended = asyncio.Event()
        failed: list[BaseException] = []

        def end(task: asyncio.Task[None]) -> None:
            admission.finished(1)
            if not task.cancelled() and (error := task.exception()) is not None:
                failed.append(error)
            ended.set()

        began = self._heard_s = time.monotonic()
        try:
            while not admission.done:
                for index in admission.take(time.monotonic() - began):
                    if not admission.unfinished - 1:
                        self._heard_s = time.monotonic()  # nobody was asked for anything until now
                    task = asyncio.create_task(self._stream(bodies[index], streams[index]))
                    task.add_done_callback(end)
                    tasks.append(task)
                now = time.monotonic()
                due_s = admission.wait_s(now - began)
                ended.clear()
                wait_s = CHECK_S if due_s is None else min(due_s, CHECK_S)
                timer = asyncio.get_running_loop().call_later(wait_s, ended.set)
                await ended.wait()
                timer.cancel()
                if failed:
                    raise failed[0]
                self._check_limits(began, admission.unfinished, len(bodies))
        finally:
            await cancel(tasks)

    def _check_limits(self, began: float, running: int, count: int) -> None:
        now, url = time.monotonic(), f"{self._endpoint.root}/v1/completions"
        of = f"with {running} of {count} requests unfinished"
        if running and now - self._heard_s > self._limits.silence_s:
            raise EngineError(
                f"{url}: the server sent nothing for {self._limits.silence_s:g} s, {of}: it hangs, or takes longer to "
                "its first token than silence_s allows"
            )
        if now - began > self._limits.batch_s:
            raise EngineError(
                f"{url}: the batch took more than {self._limits.batch_s:g} s, {of}: make it smaller, or allow more "
                "(timeouts=Timeouts(batch_s=...))"
            )

    async def _stream(self, body: bytes, stream: Stream) -> None:
        url, clock, read = f"{self._endpoint.root}/v1/completions", time.monotonic_ns, stream.feed
        stream.sent_ns = clock()
        begun = False
        try:
            async with self._connection() as http, http.stream("POST", url, content=body) as response:
                if response.status_code != 200:
                    raise self._refusal(url, response.status_code, await response.aread())
                kind = response.headers.get("Content-Type", "nothing")
                if not kind.startswith("text/event-stream"):
                    raise EngineError(
                        f"{url}: answered a request to stream with {kind}: {self._shown(await response.aread())}"
                    )
                begun = True
                async for data in response.aiter_raw():
                    read(data, clock())
                    self._heard_s = time.monotonic()
        except (EngineError, asyncio.CancelledError):
            raise
        except Exception as error:
            if begun:
                raise stream.broken(f"the connection broke ({_said(error)})") from None
            self._unreachable(url, error)
        if not stream.done:
            raise stream.broken("the stream stopped mid-way, without its closing [DONE],")

    def _refusal(self, url: str, status: int, body: bytes) -> Refused:
        said = self._shown(body)
        return Refused(status, f"{url}: answered {status}: {said}{_remedy(status)}")

    def refuse(self, path: str, answer: Answer) -> NoReturn:
        """Raise the error for an answer that is no success."""
        raise self._refusal(self._endpoint.root + path, answer.status, answer.body)

    def _shown(self, body: bytes) -> str:
        return self._without_key(shown(body)) or "(no text)"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _unreachable(self, url: str, error: Exception) -> NoReturn:
        if isinstance(error, httpx.ConnectTimeout):
            what = f"cannot connect within {self._limits.connect_s:g} s: does the server run, and can it be reached?"
        elif isinstance(error, httpx.ConnectError):
            what = f"cannot connect ({_said(error)}): is the server running, and is this its host and port?"
        elif isinstance(error, (httpx.HTTPError, httpx.InvalidURL, OSError)):
            what = (
                f"the request failed ({_said(error)}); it is not sent a second time: look at the server's log"
            )
        else:
            raise error
        raise EngineError(f"{url}: {what}") from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _remedy(status: int) -> str:
    remedies: Mapping[int, str] = {
        401: ". Give the server's key: TOKENPOWER_OPENAI_KEY, or api_key",
        403: ". Give a key that may do this: TOKENPOWER_OPENAI_KEY, or api_key",
        429: ". It is not sent a second time: lower the load (arrivals=Concurrency(...)), or raise the server's limit",
    }
    if status in (400, 422):
        return ". Where it does not know one of the fields: request_fields={'name': None} leaves it out"
    if 300 <= status < 400:
        return ". It redirects: give the URL that it redirects to"
    return remedies.get(status, ". Look at the server's log" if status >= 500 else "")
