"""The Modelfile, and the client against a strict stand-in that implements the documented endpoints.

No Ollama binary is at hand where these tests run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from export.ollama import ModelSettings, OllamaServer, modelfile, stop_tokens, thinks
from rpam_lite.errors import RpamError

SETTINGS = ModelSettings(
    {"num_ctx": 16384, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, ("<|im_end|>",), "Be brief."
)
CREATE_KEYS = {"model", "files", "parameters", "system", "license", "template", "messages", "stream", "quantize"}


class StandIn:
    """An Ollama server, as far as its documentation says."""

    def __init__(self) -> None:
        self.version, self.capabilities = "0.30.1", ["completion", "thinking"]
        self.refuses: str | None = None
        self.breaks_off = False
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self, b"")

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                stand_in.answer(self, stand_in.body(self))

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def body(request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Transfer-Encoding") != "chunked":
            return request.rfile.read(int(request.headers.get("Content-Length", 0)))
        found = b""
        while size := int(request.rfile.readline(), 16):
            found += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        return found

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path = request.path
        if path == "/api/version":
            return self.send(request, 200, json.dumps({"version": self.version}).encode())
        if path.startswith("/api/blobs/"):
            digest = path.removeprefix("/api/blobs/")
            if request.command == "HEAD":
                return self.send(request, 200 if digest in self.blobs else 404, b"")
            if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
                return self.send(request, 400, b'{"error": "digest mismatch"}')
            self.blobs[digest] = body
            return self.send(request, 201, b"")
        asked = json.loads(body)
        if path == "/api/create":
            return self.create(request, asked)
        if path == "/api/show" and asked.keys() == {"model"} and asked["model"] in self.models:
            parameters = self.models[asked["model"]]["parameters"]
            lines = "\n".join(f"{name:<30} {value}" for name, value in parameters.items() if name != "stop")
            shown = {"parameters": lines, "capabilities": self.capabilities, "template": "{{ .Prompt }}"}
            return self.send(request, 200, json.dumps(shown).encode())
        return self.send(request, 404, b'{"error": "not found"}')

    def create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        if strange := asked.keys() - CREATE_KEYS:
            return self.send(request, 400, json.dumps({"error": f"unknown {strange}"}).encode())
        events: list[dict[str, str]] = [{"status": "reading model metadata"}]
        if self.refuses or any(digest not in self.blobs for digest in asked["files"].values()):
            events.append({"error": self.refuses or "blob missing"})
        elif not self.breaks_off:
            self.models[asked["model"]] = asked
            events.append({"status": "success"})
        return self.send(request, 200, b"".join(json.dumps(event).encode() + b"\n" for event in events))

    @staticmethod
    def send(request: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@pytest.fixture
def ollama() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.server.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "merged-q4_k_m.gguf"
    path.write_bytes(bytes(range(256)) * 9000)
    return path


def test_the_modelfile(tmp_path: Path) -> None:
    text = modelfile("merged-q4_k_m.gguf", SETTINGS)
    assert text.splitlines() == [
        "FROM ./merged-q4_k_m.gguf",
        "REQUIRES 0.30.0",
        "PARAMETER num_ctx 16384",
        "PARAMETER temperature 0.6",
        "PARAMETER top_p 0.95",
        "PARAMETER top_k 20",
        'PARAMETER stop "<|im_end|>"',
        'SYSTEM """Be brief."""',
    ]
    with pytest.raises(RpamError, match=r"ollama\.system: holds"):
        modelfile("x.gguf", ModelSettings({}, (), 'a """ b'))


def test_stop_tokens_are_those_that_the_model_has() -> None:
    tokens = ["a", "<|endoftext|>", "<|im_end|>", "<think>"]
    assert stop_tokens(tokens, "<|im_end|>") == ("<|im_end|>", "<|endoftext|>")
    assert stop_tokens(["a"], None) == ()


def test_which_templates_think() -> None:
    assert thinks("{% if x %}<think>\n{% endif %}...</think>")
    assert thinks("{{ content.split('</think>')[-1] }}")
    assert not thinks("{{ content.split('</think>')[-1] }} {{ reasoning_content }}")
    assert not thinks("<|im_start|>user")


def test_a_model_is_created_and_checked(ollama: StandIn, file: Path) -> None:
    said: list[str] = []
    with OllamaServer(ollama.url) as server:
        server.create("mine", file, SETTINGS, said.append)
        assert server.check("mine", SETTINGS, thinking=True) == ["completion", "thinking"]
        assert said == ["uploading merged-q4_k_m.gguf (0.00 GB)"]
        server.create("again", file, SETTINGS, said.append)
    assert len(said) == 1, "the blob was there already"
    assert list(ollama.blobs.values()) == [file.read_bytes()]
    made = ollama.models["mine"]
    assert made["parameters"] == {**SETTINGS.parameters, "stop": ["<|im_end|>"]}
    assert made["system"] == "Be brief."
    assert "template" not in made


def test_what_a_server_does_wrong_is_named(ollama: StandIn, file: Path) -> None:
    with pytest.raises(RpamError, match=r"no Ollama server answers there .*; start it with `ollama serve`"):
        OllamaServer("http://127.0.0.1:9")
    for version in ("0.29.9", "", "nonsense"):
        ollama.version = version
        with pytest.raises(RpamError, match=r"it must be 0\.30\.0 or newer"):
            OllamaServer(ollama.url)
    ollama.version = "0.0.0"
    with OllamaServer(ollama.url) as server:
        ollama.refuses = "unsupported architecture"
        with pytest.raises(RpamError, match=r"refused to create mine \(unsupported architecture\)"):
            server.create("mine", file, SETTINGS, print)
        ollama.refuses, ollama.breaks_off = None, True
        with pytest.raises(RpamError, match="broke off while it created mine"):
            server.create("mine", file, SETTINGS, print)
        ollama.breaks_off = False
        server.create("mine", file, SETTINGS, print)
        ollama.capabilities = ["completion"]
        with pytest.raises(RpamError, match="mine has no capability 'thinking' there"):
            server.check("mine", SETTINGS, thinking=True)
        assert server.check("mine", SETTINGS, thinking=False) == ["completion"]
        ollama.models["mine"]["parameters"]["num_ctx"] = 4096
        with pytest.raises(RpamError, match="mine has num_ctx '4096' there, not 16384"):
            server.check("mine", SETTINGS, thinking=False)
        with pytest.raises(RpamError, match="/api/show answered 404"):
            server.check("other", SETTINGS, thinking=False)
