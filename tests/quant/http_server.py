"""A strict stand-in for an OpenAI-compatible server, which can misbehave, and what the HTTP engine's tests ask it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quant.engines import Request
from quant.engines.http import HttpEngine
from rpam_lite.errors import RpamError

Answer = tuple[int, dict[str, str], bytes]


TEXT = "1 + 1 = 2"


class StandIn:
    """A server whose `behave` answers each POST; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.behave: Callable[[str, dict[str, Any], int], Answer] = lambda path, body, n: text_answer()
        self.models: list[dict[str, str]] = [{"id": "first"}, {"id": "second", "owned_by": "vllm"}]
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.keys.append(self.headers.get("Authorization"))
                self.reply(*as_json({"data": stand_in.models} if self.path == "/v1/models" else None))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append((self.path, body))
                self.reply(*stand_in.behave(self.path, body, len(stand_in.asked)))

            def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the engine hangs up where it has given up
                    super().handle()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """Any value as the body."""
    return status, headers, json.dumps(value).encode()


def text_answer(text: str = TEXT, reason: str | None = "stop", usage: Any = 7, **choice: Any) -> Answer:
    """As /v1/completions answers; no `usage` where it is None, further keys of the choice as given."""
    told = {"choices": [{"text": text, "finish_reason": reason} | choice]}
    return as_json(told | ({} if usage is None else {"usage": {"completion_tokens": usage}}))


def chat_answer(reason: str = "stop", **message: Any) -> Answer:
    """As /v1/chat/completions answers, with the message's keys."""
    return as_json({"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 7}})


def request(key: str = "a", prompt: tuple[int, ...] = (5, 6), **settings: Any) -> Request:
    """At most 20 tokens of an answer to one question."""
    return Request(key, prompt, 20, question="1 + 1?", **settings)


def failure(engine: HttpEngine, asked: Request | None = None) -> str:
    """What the engine's error says."""
    with pytest.raises(RpamError) as caught:
        list(engine.generate([asked or request()]))
    return str(caught.value)
