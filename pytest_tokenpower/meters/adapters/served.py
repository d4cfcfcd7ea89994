"""A feed over HTTP: the server of ``tokenpower serve-meter``, and the transport that reads it.

Read-only, with a token, and limited in rate: three GETs (hello, now, piece) that answer JSON.
"""

from __future__ import annotations

import hmac
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters._http import checked_url, connect, get_json
from pytest_tokenpower.meters.remote import PROTOCOL, Cursor, Feed, Hello, Piece, other_version

TOKEN_VARIABLE = "TOKENPOWER_METER_TOKEN"

TIMEOUT_S = 10.0

RATE_PER_S, BURST = 50.0, 200.0
"""Requests of all clients together: a measurement makes some ten each half minute. Those without the token have as many
of their own, so that strangers cannot keep clients out."""

BUSY_S = 2.0
"""For so long a client that is told to come again later does: nothing is lost, as its cursor stays."""

LATEST_NS = 2**62
"""No machine has run for 146 years; two of these fit into 64 bits."""

_Answer = TypeVar("_Answer", Hello, Piece)


class _Budget:
    """A token bucket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left, self._at = BURST, time.monotonic()

    def take(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._left = min(BURST, self._left + RATE_PER_S * (now - self._at))
            self._at = now
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True


class MeterServer(ThreadingHTTPServer):
    """Serves a feed until it is shut down; ``server_address`` has the port that it got.

    Args:
        feed: What is served.
        host: The address to listen on.
        port: The port; 0 for any that is free.
        token: What clients must send as ``Authorization: Bearer``.
    """

    daemon_threads = True

    def __init__(self, feed: Feed, host: str, port: int, token: str) -> None:
        self.feed, self.token, self.budget, self.strangers = feed, token, _Budget(), _Budget()
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            # Of a name that has both, as localhost, the address of old.
            self.address_family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
            super().__init__((str(address[0]), port), _Handler)
        except OSError as error:
            raise UsageError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60.0
    # Head and body in one packet, at once: else the clock would be known to some 40 ms (Nagle's algorithm).
    wbufsize = -1
    disable_nagle_algorithm = True
    server: MeterServer

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = hmac.compare_digest(given.encode(), self.server.token.encode())
        if not (self.server.budget if known else self.server.strangers).take():
            self._answer(429, {"error": f"more than {RATE_PER_S:.0f} requests a second"})
            return
        if not known:
            self._answer(401, {"error": "a token is needed"})
            return
        url = urlsplit(self.path)
        if url.path == "/v1/now":
            self._answer(200, self.server.feed.now_ns())
        elif url.path == "/v1/hello":
            self._answer(200, self.server.feed.hello())
        elif url.path == "/v1/piece":
            try:
                cursor = msgspec.json.decode(parse_qs(url.query)["after"][0], type=Cursor)
            except (KeyError, msgspec.MsgspecError):
                self._answer(400, {"error": "after must be a cursor of an answer before"})
                return
            self._answer(200, self.server.feed.piece(cursor))
        else:
            self._answer(404, {"error": "there are /v1/hello, /v1/now and /v1/piece"})

    def _answer(self, status: int, document: object) -> None:
        body = msgspec.json.encode(document)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        # A clock that a proxy remembers stands still.
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line a request would fill a service's log."""


def token_of(text: str, where: str) -> str:
    """Return a token without blanks around it (a file's newline); raises UsageError, which does not show it.

    Args:
        text: What the user gave.
        where: The variable or option that it is from.
    """
    token = text.strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"{where}: a token is of printable ASCII characters, as `openssl rand -hex 16` makes it"
        )
    return token


class HttpTransport:
    """Reads a feed that ``tokenpower serve-meter`` serves; the token is the variable's, and is never shown."""

    def __init__(self, url: str | None) -> None:
        server = checked_url(url or "", "--energy-source=remote", "http://gpu-7:9471")
        if not server:
            raise UsageError("--energy-source=remote: name the service, as in remote:http://gpu-7:9471")
        self.name = f"remote:{without_credentials(server)}"
        if "@" in urlsplit(server).netloc:
            raise UsageError(
                f"--energy-source={self.name}: name it without a user and a password, which would go in the token's "
                f"place (Authorization): the token alone, in {TOKEN_VARIABLE}, says who asks"
            )
        token = token_of(os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
        if not token:
            raise MeterUnavailable(
                f"{self.name}: {TOKEN_VARIABLE} is not set: it must be the token that the service was started with"
            )
        self._client = connect(server, {"Authorization": f"Bearer {token}"})

    def hello(self) -> Hello:
        """Return the feed and its devices."""
        document = self._document("/v1/hello")
        if (
            isinstance(document, dict)
            and isinstance(version := document.get("protocol"), int)
            and version != PROTOCOL
        ):
            # Its other fields may be others, too.
            raise other_version(self.name, version)
        return self._as(document, "/v1/hello", Hello)

    def now_ns(self) -> int:
        """Return the feed's clock."""
        now = self._document("/v1/now")
        if not isinstance(now, int) or not 0 < now < LATEST_NS:
            raise MeterError(f"{self.name}: /v1/now is no time: is this a meter of tokenpower serve-meter?")
        return now

    def piece(self, cursor: Cursor) -> Piece:
        """Return what came since a cursor."""
        document = self._document("/v1/piece", {"after": msgspec.json.encode(cursor).decode()})
        return self._as(document, "/v1/piece", Piece)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _as(self, document: object, path: str, kind: type[_Answer]) -> _Answer:
        try:
            return msgspec.convert(document, kind)
        except (msgspec.ValidationError, ValueError, OverflowError) as error:
            raise MeterError(f"{self.name}: {path} is no answer of tokenpower serve-meter: {error}") from None

    def _document(self, path: str, parameters: dict[str, str] | None = None) -> object:
        until = time.monotonic() + BUSY_S
        while True:
            answer = get_json(
                self._client, path, timeout_s=2 * TIMEOUT_S, where=self.name, parameters=parameters
            )
            if answer.status != 429 or time.monotonic() > until:
                break
            time.sleep(0.1)
        if answer.status == 401:
            raise MeterUnavailable(
                f"{self.name}: it wants another token: {TOKEN_VARIABLE} must be the one that the service was "
                "started with"
            )
        if answer.status == 429:
            raise MeterError(
                f"{self.name}: its clients ask too often (429 Too Many Requests for {BUSY_S:g} s): all of them "
                f"together may ask {RATE_PER_S:.0f} times a second"
            )
        if answer.status == 200 and answer.document is None:
            raise MeterError(f"{self.name}: {path} answered no JSON: is this a tokenpower serve-meter?")
        if answer.status != 200:
            raise MeterError(
                f"{self.name}: {path} answered {answer.status} {answer.reason}: is this a tokenpower serve-meter?"
            )
        return answer.document
