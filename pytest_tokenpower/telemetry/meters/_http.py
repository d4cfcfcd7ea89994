"""One GET of a JSON document within a bounded time, as the meters that speak HTTP do it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_tokenpower.errors import MeterError

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Answer:
    """The status of a response, and its body as JSON (None where it is none)."""

    status: int
    reason: str
    document: Any


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
    that trickles is cut off.
    """
    import httpx

    end = time.monotonic() + timeout_s
    body = bytearray()
    try:
        with client.stream(
            "GET",
            path,
            params=None if parameters is None else dict(parameters),
            timeout=httpx.Timeout(timeout_s / 2),
        ) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    raise MeterError(f"{where}: the answer took longer than {timeout_s:g} s")
    except httpx.TimeoutException as error:
        raise MeterError(f"{where}: no answer within {timeout_s / 2:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MeterError(f"{where}: {str(error) or type(error).__name__}") from error
    try:
        document = json.loads(bytes(body))
    except ValueError:
        document = None
    return Answer(response.status_code, response.reason_phrase, document)
