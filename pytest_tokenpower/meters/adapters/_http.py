"""One GET of a JSON document within a bounded time, as the meters that speak HTTP do it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError

if TYPE_CHECKING:
    import ssl

    import httpx


MOST_BYTES = 32 << 20
"""No answer of a meter is larger; one that is would only fill the memory."""

MOST_REDIRECTS = 5


@dataclass(frozen=True)
class Answer:
    """The status of a response, and its body as JSON (None where it is none)."""

    status: int
    reason: str
    document: Any


def checked_url(url: str, what: str, example: str) -> str:
    """``url`` without a slash at its end; raises UsageError, which does not repeat it, where it is none.

    Args:
        url: What the user named; empty for "none".
        what: Who wants it, at the beginning of the message.
        example: A URL as it should look.
    """
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{what}: the URL must look like {example} (a password in it percent-encoded)")
    return url.rstrip("/")


def connect(server: str, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """Return a client of a server; a query of its URL, as a gateway may want one, goes with each request.

    Raises MeterUnavailable where SSL_CERT_FILE or SSL_CERT_DIR name no certificates.
    """
    import httpx

    url = httpx.URL(server)
    return httpx.Client(
        base_url=url.copy_with(query=None),
        params=url.params,
        headers=headers,
        verify=trusted(server),
        # Credentials are for the server alone, not for a proxy.
        trust_env=False,
    )


def trusted(server: str) -> bool | ssl.SSLContext:
    """Return the certificates to trust: those that SSL_CERT_FILE or SSL_CERT_DIR name, or the public ones."""
    import httpx

    if urlsplit(server).scheme == "http":
        return False  # There are none, so that a file that is gone is no matter.
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise MeterUnavailable(
            f"no certificates can be read from {os.environ.get('SSL_CERT_FILE') or os.environ.get('SSL_CERT_DIR')} "
            f"(SSL_CERT_FILE, SSL_CERT_DIR): {error.strerror or error}"
        ) from error


def get_json(
    client: httpx.Client,
    path: str,
    *,
    timeout_s: float,
    where: str,
    parameters: Mapping[str, str] | None = None,
) -> Answer:
    """GET ``path``; raises MeterError that begins with ``where`` when there is no whole answer in ``timeout_s``.

    httpx limits each wait and not their sum, so connecting and answering get half of the time each, and a body
    that trickles is cut off. Neither a link nor a redirect leads to another host: it would be handed the credentials.
    """
    import httpx

    end = time.monotonic() + timeout_s
    try:
        request = client.build_request(
            "GET",
            path,
            params=None if parameters is None else dict(parameters),
            timeout=httpx.Timeout(timeout_s / 2),
        )
        for _ in range(MOST_REDIRECTS + 1):
            if not _same_host(client.base_url, request.url):
                other = f"{request.url.scheme}://{request.url.netloc.decode()}"
                raise MeterError(
                    f"{where}: it leads to another host ({other}), which is not followed; name that one if it is the"
                    " right one"
                )
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.next_request is None:
                    return Answer(
                        response.status_code,
                        response.reason_phrase,
                        _document(response, end, timeout_s, where),
                    )
                request = response.next_request
            finally:
                response.close()
        raise MeterError(f"{where}: it redirects more than {MOST_REDIRECTS} times")
    except httpx.TimeoutException as error:
        raise MeterError(f"{where}: no answer within {timeout_s / 2:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = without_credentials(str(error)) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in words:
            words += "; SSL_CERT_FILE names a file of certificates to trust"
        raise MeterError(f"{where}: {words}") from error


def _document(response: httpx.Response, end: float, timeout_s: float, where: str) -> Any:
    """Return the body as JSON; None where it is none. Raises MeterError for one that trickles, is huge or too deep."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if time.monotonic() > end:
            raise MeterError(f"{where}: the answer took longer than {timeout_s:g} s")
        if len(body) > MOST_BYTES:
            raise MeterError(
                f"{where}: the answer is larger than {MOST_BYTES >> 20} MiB, which no meter gives"
            )
    try:
        return msgspec.json.decode(bytes(body))
    except RecursionError as error:
        raise MeterError(f"{where}: the answer is JSON that is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _same_host(base: httpx.URL, url: httpx.URL) -> bool:
    """Whether a request stays where the user sent it; from http to https of the same host it may go."""
    if base.host != url.host:
        return False
    here, there = (_port(each) for each in (base, url))
    return (base.scheme, here) == (url.scheme, there) or (
        (base.scheme, here) == ("http", 80) and (url.scheme, there) == ("https", 443)
    )


def _port(url: httpx.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
