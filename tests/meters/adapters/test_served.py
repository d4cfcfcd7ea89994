"""`tokenpower serve-meter` and `--energy-source=remote:URL`, over loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpcore  # noqa: F401 - what pytester sees imported first, it forgets, and httpx holds on to it
import httpx
import pytest

from pytest_tokenpower.cli import main
from pytest_tokenpower.errors import MeterError, MeterUnavailable, UsageError
from pytest_tokenpower.meters.adapters.served import TOKEN_VARIABLE, HttpTransport, MeterServer, _Budget
from pytest_tokenpower.meters.remote import Feed
from pytest_tokenpower.meters.sources import start
from tests.support.loopback import self_signed, serving
from tests.support.projects import Project

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-enough-characters"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


@contextmanager
def served(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    feed = Feed(*start("simulated"))
    with MeterServer(feed, "127.0.0.1", 0, TOKEN) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            feed.close()


def test_a_test_is_measured_by_a_meter_elsewhere_and_its_record_says_where(project: Project) -> None:
    project.on_machine_time()
    project.tests("def test_chat(energy): energy(generate)")
    with served() as url:
        result, run = project.measure(f"--energy-source=remote:{url}")
    result.assert_outcomes(passed=1)
    [measured] = run.measurements
    assert measured.comparable
    assert measured.provenance == "simulated"
    assert measured.figures["joules_per_token"].value > 0
    assert TOKEN not in run.__repr__()


def test_another_token_is_refused_and_neither_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as url:
        monkeypatch.setenv(TOKEN_VARIABLE, "another-secret-token")
        transport = HttpTransport(url)
        with pytest.raises(MeterUnavailable, match=TOKEN_VARIABLE) as refused:
            transport.hello()
        assert "secret" not in str(refused.value)
        transport.close()


@pytest.mark.parametrize("given", ["", " \n", "schlüssel-aber-lang-genug", "secret\x07secretsecret"])
def test_a_token_that_cannot_be_one_is_refused_before_it_is_sent_and_never_shown(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, given)
    with pytest.raises(UsageError if given.strip() else MeterUnavailable, match=TOKEN_VARIABLE) as refused:
        HttpTransport("http://127.0.0.1:9")
    assert not given.strip() or given not in str(refused.value)
    assert main(["serve-meter", "--source=simulated"]) == 4
    assert "openssl rand -hex 16" in capsys.readouterr().err
    (tmp_path / "token").write_bytes(b"\xff" * 32)
    assert main(["serve-meter", "--source=simulated", f"--token-file={tmp_path / 'token'}"]) == 4
    assert "it is no text" in capsys.readouterr().err


def test_the_newline_of_a_file_of_secrets_is_no_part_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, f"{TOKEN}\n")
    with served() as url:
        transport = HttpTransport(url)
        assert transport.hello().devices
        transport.close()


def test_strangers_do_not_keep_clients_out_and_a_client_that_is_told_to_wait_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as url, httpx.Client(base_url=url) as stranger:
        monkeypatch.setattr("pytest_tokenpower.meters.adapters.served.RATE_PER_S", 0.001)
        codes = [stranger.get("/v1/now").status_code for _ in range(210)]
        assert set(codes) == {401, 429}
        transport = HttpTransport(url)
        answer = transport.hello()
        refusals = iter([False, False])
        monkeypatch.setattr(_Budget, "take", lambda _: next(refusals, True))
        assert transport.piece(answer.cursor).feed == answer.feed
        assert next(refusals, None) is None
        transport.close()


def test_a_user_in_the_url_would_take_the_tokens_place_and_is_refused() -> None:
    with pytest.raises(
        UsageError, match=f"remote:http://gpu-7: .*without a user.*{TOKEN_VARIABLE}"
    ) as refused:
        HttpTransport("http://me:s3cret@gpu-7")
    assert "s3cret" not in str(refused.value)


def test_what_a_gateway_wants_in_the_query_goes_along() -> None:
    with served() as url:
        transport = HttpTransport(f"{url}?team=llm")
        answer = transport.hello()
        assert transport.piece(answer.cursor).feed == answer.feed
        transport.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_a_certificate_of_ones_own_is_trusted_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with served(tls) as url:
        transport = HttpTransport(url)
        assert transport.hello().devices
        transport.close()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(MeterError, match=r"CERTIFICATE_VERIFY_FAILED.*; SSL_CERT_FILE names a file"):
            HttpTransport(url).hello()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with pytest.raises(MeterUnavailable, match=r"absent.pem \(SSL_CERT_FILE, SSL_CERT_DIR\): No such file"):
        HttpTransport(url)
    with served() as url:
        # Nothing is encrypted there: no certificates are wanted.
        transport = HttpTransport(url)
        assert transport.hello().devices
        transport.close()


def test_a_version_whose_other_fields_differ_too_is_told_as_a_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HttpTransport, "_document", lambda *_: {"protocol": 7, "boards": 3})
    with pytest.raises(MeterUnavailable, match=r"version 7 of the protocol.* install the same"):
        HttpTransport("http://127.0.0.1:9").hello()


def test_too_many_requests_and_unknown_paths_are_answered_and_harm_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.get("/v1/piece").status_code == 400
        assert client.get("/v1/piece", params={"after": "[["}).status_code == 400
        assert client.get("/etc/passwd").status_code == 404
        assert client.post("/v1/now").status_code == 501
        monkeypatch.setattr("pytest_tokenpower.meters.adapters.served.RATE_PER_S", 0.001)
        codes = [client.get("/v1/now").status_code for _ in range(210)]
        assert set(codes) == {200, 429}
        transport = HttpTransport(url)
        monkeypatch.setattr(_Budget, "take", lambda _: False)
        monkeypatch.setattr("pytest_tokenpower.meters.adapters.served.BUSY_S", 0.0)
        with pytest.raises(MeterError, match=r"its clients ask too often \(429 .*together may ask"):
            transport.now_ns()
        transport.close()


def test_what_is_no_such_service_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="remote:http://gpu-7:9471"):
        HttpTransport(None)
    transport = HttpTransport("http://127.0.0.1:9")
    with pytest.raises(MeterError, match=r"remote:http://127\.0\.0\.1:9: "):
        transport.hello()
    no_json = pytest.raises(MeterError, match=r"/v1/hello answered no JSON: is this a tokenpower serve-meter")
    with serving(lambda request: request.answer(200, b"<html>")) as url, no_json:
        HttpTransport(url).hello()
    monkeypatch.setattr(HttpTransport, "_document", lambda *_: {"status": "ok"})
    with pytest.raises(MeterError, match="no answer of tokenpower serve-meter"):
        transport.hello()
    with pytest.raises(MeterError, match="no time"):
        transport.now_ns()


def test_a_service_without_a_token_or_on_a_port_in_use_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served() as url:
        port = url.rpartition(":")[2]
        assert main(["serve-meter", "--source=simulated", f"--port={port}"]) == 4
        assert f"127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err
    for port in ("65536", "-1"):
        assert main(["serve-meter", "--source=simulated", f"--port={port}"]) == 4
        assert f"--port={port}: must be 0 to 65535" in capsys.readouterr().err
    assert main(["serve-meter", "--source=simulated:virtual"]) == 4
    assert "virtual clock cannot be handed out" in capsys.readouterr().err
    for source in ("replay:run.jsonl", "ecologits:openai/gpt-4o"):
        assert main(["serve-meter", f"--source={source}"]) == 4
        assert "measures nothing, and is for pytest alone" in capsys.readouterr().err
    assert main(["serve-meter", "--source=simulated,model"]) == 4
    assert "modelled come from the CPU time of the process that measures, here" in capsys.readouterr().err
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert main(["serve-meter", "--source=simulated"]) == 4
    assert "openssl rand -hex 16" in capsys.readouterr().err


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))]
)
def test_the_command_serves_until_it_is_ended(host: str) -> None:
    command = [sys.executable, "-m", "pytest_tokenpower", "serve-meter", "--source=simulated", "--port=0"]
    command += ["--host", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as service:
        assert service.stdout is not None
        line = service.stdout.readline()
        url = line.split(" on ")[1].split(";")[0]
        transport = HttpTransport(url)
        assert transport.hello().devices[0].scope == "gpu"
        transport.close()
        # What a shell has in its background ignores SIGINT, and with it all that this suite starts there.
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
