"""A hub of one's own on this machine: the calls that an upload makes, with what they sent kept."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_double"
COMMIT = "c" * 40


class HubDouble:
    """State of the hub: its repositories, the files of the last commit, and the status it answers to some calls."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.fails: dict[str, tuple[int, str]] = {}
        """Path of a call to the status and message with which it fails."""
        self.calls: list[str] = []
        self.address = ""

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON of one call."""
        self.calls.append(path)
        failing = next((failure for part, failure in self.fails.items() if part in path), None)
        if failing is not None:
            return failing[0], {"error": failing[1]}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid user token."}
        if path == "/api/whoami-v2":
            return 200, {"name": "user", "type": "user"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.repositories[name] = asked
            return 200, {"url": f"{self.address}/{name}"}
        if "/preupload/" in path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return 200, {"files": [{**one, "shouldIgnore": False} for one in files]}
        if "/commit/" in path:
            rows = [json.loads(line) for line in body.splitlines()]
            for row in (row["value"] for row in rows if row["key"] == "file"):
                self.files[row["path"]] = base64.b64decode(row["content"])
            name = "/".join(path.split("/")[3:5])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": f"no {path}"}


@contextmanager
def hub_double(patch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A hub that huggingface_hub of this process talks to, with a token that it accepts."""
    from huggingface_hub import constants

    hub = HubDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = hub.answer(self.path.partition("?")[0], body, self.headers.get("Authorization", ""))
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setenv("HF_TOKEN", TOKEN)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
