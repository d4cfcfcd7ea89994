"""`tokenpower serve-meter`: hands this machine's meters out over HTTP, read-only, for tests that run elsewhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pytest_tokenpower.core.credentials import without_credentials
from pytest_tokenpower.errors import UsageError
from pytest_tokenpower.meters.adapters.served import TOKEN_VARIABLE, MeterServer, token_of
from pytest_tokenpower.meters.remote import Feed
from pytest_tokenpower.meters.sources import start

EPILOG = f"""\
The tests name it as --energy-source=remote:http://HOST:PORT, with the same token in {TOKEN_VARIABLE}. HTTP is not
encrypted: keep it on a trusted network, or behind a TLS proxy or an SSH tunnel.
"""

LEAST_TOKEN = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is served, where, and to whom."""
    parser.epilog = EPILOG
    parser.add_argument("--source", default="auto", help="what measures, as --energy-source (default: auto)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=9471, help="port to listen on, 0 for any (default: 9471)")
    parser.add_argument(
        "--token-file", type=Path, help=f"file with the token (default: the variable {TOKEN_VARIABLE})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or TERM."""
    if not 0 <= arguments.port <= 65_535:
        raise UsageError(f"--port={arguments.port}: must be 0 to 65535")
    token = _token(arguments.token_file)
    collector, devices = start(arguments.source)
    feed = Feed(collector, devices)
    try:
        if any(device.provenance == "modelled" for device in devices):
            raise UsageError(
                f"--source={without_credentials(arguments.source)}: joules that are modelled come from the CPU time of "
                "the process that measures, here the service's own: name a meter of this machine, such as rapl"
            )
        with MeterServer(feed, arguments.host, arguments.port, token) as server:
            host, port = map(str, server.server_address[:2])
            host = f"[{host}]" if ":" in host else host
            print(
                f"serving {', '.join(device.id for device in devices)} on http://{host}:{port}; "
                f"tests use --energy-source=remote:http://HOST:{port}",
                flush=True,
            )
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        feed.close()
    return 0


def _token(file: Path | None) -> str:
    try:
        text = file.read_text() if file else os.environ.get(TOKEN_VARIABLE, "")
    except OSError as error:
        raise UsageError(f"--token-file={file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--token-file={file}: it is no text") from None
    token = token_of(text, f"--token-file={file}" if file else f"--token-file or {TOKEN_VARIABLE}")
    if len(token) < LEAST_TOKEN:
        raise UsageError(
            f"a token of at least {LEAST_TOKEN} characters is needed, in --token-file or {TOKEN_VARIABLE}: "
            "`openssl rand -hex 16` makes one"
        )
    return token
