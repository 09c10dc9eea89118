"""A small Hub on this machine: the addresses that huggingface_hub asks for, and ways in which one may misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

REPO = "someone/phi-small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v2", COMMIT, "f" * 40)
TOKEN = "hf_verySecretTokenOfTheTests"


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked.

    Attributes:
        files: of the one repository, by name.
        commit: that its branches are at.
        status: answer everything with this status, and `code` as the Hub's own name of the error.
        ignore_range: send whole files, whatever is asked for.
        short_by: end so many bytes before the end of a range.
        replace_after: after so many answers with bytes of weights, give them another ETag.
        sent: for each file, the bytes that were sent of it.
        asked: method and path of every request.
        tokens: what came as authorization.
    """

    files: dict[str, bytes]
    url: str = ""
    commit: str = COMMIT
    status: int = 200
    code: str = ""
    ignore_range: bool = False
    short_by: int = 0
    replace_after: int | None = None
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    answers: int = 0

    def etag(self, name: str) -> str:
        replaced = (
            self.replace_after is not None and self.answers > self.replace_after and name.endswith(".safetensors")
        )
        return hashlib.sha256(self.files[name] + b"!" * replaced).hexdigest()

    def fetched(self, suffix: str) -> int:
        return sum(nbytes for name, nbytes in self.sent.items() if name.endswith(suffix))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/") and not path.startswith("/api/models/"):
            self.reply(404, b"{}", {})  # what huggingface_hub asks for itself
            return
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.status != 200:
            self.reply(hub.status, b"{}", {"X-Error-Code": hub.code, "X-Error-Message": "no"})
        elif path.startswith(f"/api/models/{REPO}"):
            self.describe(path.removeprefix(f"/api/models/{REPO}").strip("/"))
        elif path.startswith(f"/{REPO}/resolve/"):
            revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
            if revision not in REVISIONS:
                self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif name not in hub.files:
                self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            else:
                self.send_file(name, COMMIT if revision == COMMIT else self.hub.commit)
        else:
            self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})

    def describe(self, what: str) -> None:
        kind, _, revision = what.partition("/")
        revision = revision or "main"
        if revision not in REVISIONS:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            files = [
                {"type": "file", "oid": self.hub.etag(name)[:40], "size": len(data), "path": name}
                for name, data in self.hub.files.items()
            ]
            self.reply(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        else:
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": self.hub.etag(name)[:40]}
                for name, data in self.hub.files.items()
            ]
            info = {"id": REPO, "sha": self.hub.commit, "siblings": siblings, "tags": [], "private": False}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str, revision: str) -> None:
        hub, data = self.hub, self.hub.files[name]
        headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if self.command == "HEAD":
            self.reply(200, data, headers)
            return
        hub.answers += name.endswith(".safetensors")
        if wanted is None or hub.ignore_range:
            self.reply(200, data, headers, name)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.reply(206, data[start : stop - hub.short_by], headers, name)

    def reply(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            if name:  # before the bytes go, since a test looks as soon as it has them
                self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body)
            with suppress(ConnectionError):
                self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who ask may hang up."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve these files as a repository."""
    hub = Hub(files)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def use(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """Let huggingface_hub, in this process, ask this server and no other, and keep a cache of its own."""
    from huggingface_hub import close_session, constants

    from converters.storage import hub as ours

    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ours._repositories.clear()
