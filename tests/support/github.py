"""A GitHub with pull requests and comments alone, on a socket of this machine, for the real ``gh`` and a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.workflows import ROOT, TOKEN, evaluate, filled, load, write_python3

COMMENT_JOB = load("examples/github/energy-comment.yml")["jobs"]["comment"]

COMMIT = "c" * 40

BOT = "github-actions[bot]"

PAGE = 2
"""Comments on a page: few, so that what is looked for is not on the first."""

# Of `gh api` what the workflow uses: -f and -F fields, --paginate, and --jq by the program jq.
STAND_IN = """#!{python}
import argparse, http.client, json, re, socket, subprocess, sys, urllib.parse
parser = argparse.ArgumentParser()
parser.add_argument("api"), parser.add_argument("path")
parser.add_argument("--method", default="GET"), parser.add_argument("--paginate", action="store_true")
parser.add_argument("-f", action="append", default=[]), parser.add_argument("-F", action="append", default=[])
parser.add_argument("--jq", default=".")
given = parser.parse_args()
fields = dict(each.split("=", 1) for each in given.f)
for name, value in (each.split("=", 1) for each in given.F):
    fields[name] = open(value[1:], encoding="utf-8").read() if value.startswith("@") else value
path = "/" + given.path
body = json.dumps(fields)
if given.method == "GET":
    path, body = (path + "?" + urllib.parse.urlencode(fields) if fields else path), None
while path:
    connection = http.client.HTTPConnection("api.github.com")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect({socket!r})
    connection.request(given.method, path, body)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        sys.exit(f"gh: {{text.decode()}} (HTTP {{answer.status}})")
    subprocess.run(["jq", "-r", given.jq], input=text, check=True)
    following = re.search(r"<https://api.github.com([^>]+)>; rel=.next", answer.headers.get("Link") or "")
    path = following[1] if following and given.paginate else ""
"""


@dataclass
class GitHub:
    """The pull requests and comments of one repository; ``calls`` are the requests that changed something.

    ``real``: it is asked by the real gh, not by a stand-in.
    """

    socket: Path
    pulls: list[dict[str, Any]] = field(default_factory=list)
    comments: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    real: bool = False

    def say(self, body: str, user: str) -> dict[str, Any]:
        """Add a comment."""
        number = 100 + len(self.comments)
        self.comments.append(
            {"id": number, "user": {"login": user}, "body": body, "html_url": f"https://x/{number}"}
        )
        return self.comments[-1]

    def bodies(self, user: str = BOT) -> list[str]:
        """Return what a user has said."""
        return [each["body"] for each in self.comments if each["user"]["login"] == user]

    def answer(self, method: str, target: str, body: str) -> tuple[int, Any, str]:
        """Return status, JSON and the Link header."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if method == "GET" and path == "/repos/owner/app/pulls":
            head = query["head"][0]
            return 200, [each for each in self.pulls if each["head"]["label"] == head], ""
        if method == "GET" and path == "/repos/owner/app/issues/7/comments":
            page = int(query.get("page", ["1"])[0])
            shown, after = self.comments[(page - 1) * PAGE : page * PAGE], self.comments[page * PAGE :]
            link = f'<https://api.github.com{path}?page={page + 1}>; rel="next"' if after else ""
            return 200, shown, link
        self.calls.append(method)
        said = json.loads(body)["body"]
        if len(said) > 65_536:
            return 422, {"message": "body is too long (maximum is 65536 characters)"}, ""
        if method == "POST" and path == "/repos/owner/app/issues/7/comments":
            return 201, self.say(said, BOT), ""
        if method == "PATCH" and (found := re.fullmatch(r"/repos/owner/app/issues/comments/(\d+)", path)):
            [comment] = [each for each in self.comments if each["id"] == int(found[1])]
            comment["body"] = said
            return 200, comment, ""
        return 404, {"message": f"{method} {target}"}, ""

    def install(self, folder: Path) -> None:
        """Put a gh into a folder that asks this GitHub; skips the test where what it needs is missing."""
        needed = "gh" if self.real else "jq"
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
        (folder / "config.yml").write_text(f"http_unix_socket: {self.socket}\n")
        if not self.real:
            (folder / "gh").write_text(STAND_IN.format(python=sys.executable, socket=str(self.socket)))
            (folder / "gh").chmod(0o755)


@contextmanager
def served() -> Iterator[GitHub]:
    """Serve a repository ``owner/app`` with the pull request 7 of somebody's branch "topic", at :data:`COMMIT`."""
    # pytest's folders have names too long for a socket.
    folder = tempfile.TemporaryDirectory()
    github = GitHub(Path(folder.name) / "s")
    github.pulls = [{"number": 7, "head": {"sha": COMMIT, "label": "somebody:topic"}}]

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status, told, link = github.answer(self.command, self.path, body)
            text = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            if link:
                self.send_header("Link", link)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with folder, socketserver.ThreadingUnixStreamServer(str(github.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield github
        finally:
            server.shutdown()
            thread.join()


def posted(github: GitHub, home: Path, records: Mapping[str, bytes], **event: Any) -> str:
    """Run the job's steps on a new runner, with an artifact of each name; return what it printed."""
    temp = Path(tempfile.mkdtemp(dir=home))
    (temp / "records").mkdir()
    for name, content in records.items():
        (temp / "records" / f"{name}.json").write_bytes(content)
    (temp / "bin").mkdir(parents=True)
    write_python3(temp / "bin")
    github.install(temp / "bin")
    run = {
        "event": "pull_request", "conclusion": "failure", "head_sha": COMMIT, "head_branch": "topic",
        "head_repository": {"owner": {"login": "somebody"}},
    }  # fmt: skip
    outputs = temp / "outputs"
    outputs.write_text("")
    steps: dict[str, Any] = {}
    context = {
        "github": {"repository": "owner/app", "token": TOKEN, "event": {"workflow_run": {**run, **event}}},
        "steps": steps,
    }
    assert evaluate(COMMENT_JOB["if"], context)
    said = ""
    for step in COMMENT_JOB["steps"]:
        if "uses" in step or not evaluate(step.get("if", "'yes'"), context):
            continue
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]],
            cwd=temp,
            env={
                **os.environ,
                "PATH": f"{temp / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "GH_CONFIG_DIR": str(temp / "bin"),
                "RUNNER_TEMP": str(temp),
                "GITHUB_OUTPUT": str(outputs),
                **{name: filled(value, context) for name, value in step.get("env", {}).items()},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said += done.stdout
        assert done.returncode == 0, done.stdout + done.stderr
        read = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
        steps[step.get("id", "")] = {"outputs": read}
    return said
