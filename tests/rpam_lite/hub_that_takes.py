"""A stand-in for the hub that takes what is published, and answers as the hub does."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from tests.rpam_lite.test_hub import go_to


class Hub:
    """Repositories in memory; large files arrive one by one, then a commit names them."""

    def __init__(self) -> None:
        self.user: dict[str, Any] = {
            "name": "ada",
            "orgs": [{"name": "lab"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.refused_sizes: set[int] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.split("?")[0]
                hub.asked.append((self.command, path))
                code, told = hub.answer(self.command, path, body, self.headers.get("Authorization"))
                data = json.dumps(told).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        if method == "PUT":
            if len(body) in self.refused_sizes:
                return 403, {"error": "the line broke"}
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if token != "Bearer hf_good":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, self.user
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"ada/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "there already", "url": f"{self.url}/{name}"}
            self.repositories[name] = {}
            if not asked.get("private") and asked.get("visibility") != "private":
                self.public.add(name)
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit)/main)?", path):
            name, what = found.groups()
            if name == "acme/long":
                return 200, {"id": name, "cardData": {"license": "mit"}}
            if what == "preupload":
                files = json.loads(body)["files"]
                modes = {
                    f["path"]: "lfs" if f["path"].endswith((".safetensors", ".gguf")) else "regular" for f in files
                }
                return 200, {
                    "files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
                }
            if what == "commit":
                return 200, self.commit(name, body)
            return 200, {"id": name, "private": name not in self.public, "sha": "0" * 40}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **o,
                    "actions": {"upload": {"href": f"{self.url}/store/{o['oid']}"}}
                    if o["oid"] not in self.stored
                    else {},
                }
                for o in json.loads(body)["objects"]
            ]
            return 200, {
                "transfer": "basic",
                "objects": [o if o["actions"] else {k: o[k] for k in ("oid", "size")} for o in objects],
            }
        return 404, {"error": f"no such place: {method} {path}"}

    def commit(self, name: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}

    def sent(self) -> int:
        return sum(method == "PUT" for method, _ in self.asked)


def taking_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, with this machine's token for it; `hub = pytest.fixture(taking_hub)` makes it a module's."""
    hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    go_to(hub.url, monkeypatch)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def front(card: bytes) -> dict[str, Any]:
    """What the hub reads of a card that it was sent."""
    return dict(yaml.safe_load(card.decode().split("---\n")[1]))
