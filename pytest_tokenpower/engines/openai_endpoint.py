"""Where a server of OpenAI's protocol is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_tokenpower.errors import UsageError


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
