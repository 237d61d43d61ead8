"""The HTTP engine, against a strict stand-in that can misbehave, and against llama-cpp-python's own server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.gguf.write import write_gguf
from quant import evaluate, load
from quant.engines import Completion, Request, Sampling, http_client
from quant.engines.chat import ChatTokenizer
from quant.engines.http import HttpEngine
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint

Answer = tuple[int, dict[str, str], bytes]
TEXT = "1 + 1 = 2"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("model") / "hf"
    return make_checkpoint(path, 5, tokenizer, hidden_size=256, intermediate_size=256, initializer_range=0.2)


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
    return status, headers, json.dumps(value).encode()


def text_answer(text: str = TEXT, reason: str | None = "stop", usage: Any = 7, **choice: Any) -> Answer:
    told = {"choices": [{"text": text, "finish_reason": reason} | choice]}
    return as_json(told | ({} if usage is None else {"usage": {"completion_tokens": usage}}))


def chat_answer(reason: str = "stop", **message: Any) -> Answer:
    return as_json({"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 7}})


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


def request(key: str = "a", prompt: tuple[int, ...] = (5, 6), **settings: Any) -> Request:
    return Request(key, prompt, 20, question="1 + 1?", **settings)


def collect(running: Iterator[Completion], done: list[str]) -> None:
    for completion in running:
        done.append(completion.key)


def failure(engine: HttpEngine, asked: Request | None = None) -> str:
    with pytest.raises(RpamError) as caught:
        list(engine.generate([asked or request()]))
    return str(caught.value)


def test_token_ids_and_sampling_are_sent(server: StandIn, folder: Path) -> None:
    server.behave = lambda path, body, n: text_answer(reason="length")
    engine = HttpEngine(server.url + "/v1/", "second", folder, api_key="s3cret")
    prompt = engine.chat_prompt("1 + 1?")
    asked = [
        request("a", prompt, sampling=Sampling(0.6, 0.95, 20, 7)),
        request("b", prompt),
    ]
    found = {c.key: c for c in engine.generate(asked)}
    assert found.keys() == {"a", "b"}
    assert (found["a"].text, found["a"].finish_reason, found["a"].generated) == (TEXT, "length", 7)
    assert 0 < found["a"].seconds < 5
    bodies = {body["seed"]: body for path, body in server.asked if path == "/v1/completions"}
    assert bodies[7] == {
        "model": "second",
        "prompt": list(prompt),
        "max_tokens": 20,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "seed": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }
    assert bodies[0]["top_k"] == -1
    assert (engine.name, server.keys[-1]) == ("second", "Bearer s3cret")
    others = [HttpEngine(server.url), HttpEngine(server.url, "first")]
    assert others[0].identity == others[1].identity != engine.identity
    list(others[0].generate([request()]))
    assert server.asked[-1][1].keys() == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed"}


def test_token_ids_of_the_server_give_exact_pieces(server: StandIn, folder: Path) -> None:
    known = ChatTokenizer(folder)
    ids = known.encode("<think>東")
    (end,) = known.end_ids
    logprobs = {"tokens": ["?"] * len(ids) + ["<|im_end|>"], "token_logprobs": [-0.5] * len(ids) + [-9.0]}
    server.behave = lambda path, body, n: text_answer("<think>東", token_ids=[*ids, end], logprobs=logprobs)
    engine = HttpEngine(server.url, "second", folder)
    (completion,) = engine.generate([request(logprobs=True)])
    assert completion.token_ids == ids
    assert completion.pieces == tuple(known.pieces[i] for i in ids)
    assert completion.logprobs == (-0.5,) * len(ids)
    assert server.asked[0][1]["logprobs"] == 1


@pytest.mark.parametrize(("status", "told"), [(422, "a string"), (400, "a string"), (500, "1 validation error")])
def test_a_server_that_refuses_ids_gets_text_ever_after(server: StandIn, folder: Path, status: int, told: str) -> None:
    def behave(path: str, body: dict[str, Any], n: int) -> Answer:
        return as_json(told, status) if isinstance(body["prompt"], list) else text_answer()

    server.behave = behave
    engine = HttpEngine(server.url, tokenizer=folder, parallel=1)
    prompt = engine.chat_prompt("1 + 1?")
    assert len(list(engine.generate([request(str(i), prompt) for i in range(3)]))) == 3
    sent = [body["prompt"] for _, body in server.asked]
    assert [type(p) for p in sent] == [list, str, str, str]
    assert sent[1] == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert f"status {status}" in failure(HttpEngine(server.url))  # no tokenizer, no text


def test_a_start_token_that_the_server_adds_is_not_sent(folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    start = next(a["id"] for a in data["added_tokens"] if a["content"] == "<|endoftext|>")
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [start], "tokens": ["<|endoftext|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    plain, adding = ChatTokenizer(folder), ChatTokenizer(tmp_path)
    ids = (start, *plain.encode("user 1"))
    assert plain.as_text(ids) == "<|endoftext|>user 1"
    assert adding.as_text(ids) == "user 1"


def test_a_busy_server_is_asked_again(server: StandIn) -> None:
    def behave(path: str, body: dict[str, Any], n: int) -> Answer:
        return as_json({}, 429, **{"Retry-After": "0.3"}) if n == 1 else as_json({}, 503) if n == 2 else text_answer()

    server.behave = behave
    engine = HttpEngine(server.url)
    started = time.perf_counter()
    assert [c.text for c in engine.generate([request()])] == [TEXT]
    assert time.perf_counter() - started > 0.3
    assert len(server.asked) == 3
    server.behave = lambda path, body, n: as_json({}, 429, **{"Retry-After": "3600"})
    assert "answered 429 and asks to wait 3600 s" in failure(engine)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("answer", "tries", "message"),
    [
        (
            (500, {}, b"out of\nmemory"),
            3,
            r"/v1/completions: answered 500 \(out of memory\) \(tried 3 times\); look at",
        ),
        ((200, {"Content-Length": "99"}, b'{"cho'), 3, r"the connection fails \(.*\) \(tried 3 times\); check that"),
        ((200, {}, b"<html>"), 3, r"no OpenAI-compatible answer \(the whole: Invalid JSON.*<html>.*tried 3 times"),
        (as_json({"choices": []}), 3, r"no OpenAI-compatible answer \(choices: "),
        (as_json({"choices": [{"text": 5}]}), 3, r"no OpenAI-compatible answer \(choices\.0\.text: "),
        (as_json("wrong key", 401), 1, r"refused with status 401 \(.wrong key.\); give its key as .*OPENAI_API_KEY"),
        (as_json("too long", 400), 1, r"refused with status 400 \(.too long.\)\."),
        (text_answer(usage=None), 1, r"tells no usage\.completion_tokens for request 'a'"),
        (text_answer(reason="content_filter"), 1, r"finish_reason 'content_filter'"),
        (text_answer(reason=None), 1, r"finish_reason None"),
    ],
)
def test_what_no_retry_mends_is_named(server: StandIn, answer: Answer, tries: int, message: str) -> None:
    server.behave = lambda path, body, n: answer
    with pytest.raises(RpamError, match=message):
        list(HttpEngine(server.url, retries=2).generate([request()]))
    assert len(server.asked) == tries


def test_a_server_that_hangs_is_given_up(server: StandIn) -> None:
    def behave(path: str, body: dict[str, Any], n: int) -> Answer:
        time.sleep(1.0)
        return text_answer()

    server.behave = behave
    engine = HttpEngine(server.url, retries=1, timeout=0.3)
    assert "tried 2 times); raise `timeout`" in failure(engine)


def test_what_is_done_comes_before_the_error(server: StandIn) -> None:
    def behave(path: str, body: dict[str, Any], n: int) -> Answer:
        if body["seed"] < 2:
            return text_answer()
        time.sleep(0.2)
        return as_json("no", 400)

    server.behave = behave
    asked = [request(str(i), sampling=Sampling(seed=i)) for i in range(9)]
    running, done = HttpEngine(server.url, parallel=3).generate(asked), list[str]()
    with pytest.raises(RpamError, match="status 400"):
        collect(running, done)
    assert sorted(done) == ["0", "1"]
    assert len(server.asked) < 9


def test_closing_the_generator_stops_the_others_at_once(server: StandIn) -> None:
    release = threading.Event()

    def behave(path: str, body: dict[str, Any], n: int) -> Answer:
        if body["seed"]:
            release.wait(20)
        return text_answer()

    server.behave = behave
    running = HttpEngine(server.url, parallel=4).generate(
        [request(str(i), sampling=Sampling(seed=i)) for i in range(9)]
    )
    assert next(running).key == "0"
    started = time.perf_counter()
    running.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - started < 5
    release.set()
    assert not [t for t in threading.enumerate() if t.name == "http requests"]
    assert len(server.asked) <= 5


def test_a_think_block_that_stands_apart_is_put_back(server: StandIn) -> None:
    engine = HttpEngine(server.url)
    assert engine.chat_prompt("1 + 1?") == ()
    assert not engine.opens_think
    for message, reason, text in [
        ({"content": "2"}, "stop", "2"),
        ({"content": "\n\n2", "reasoning_content": "\nhm\n"}, "stop", "<think>\nhm\n</think>\n\n2"),
        ({"content": "2", "reasoning": "hm"}, "stop", "<think>\nhm\n</think>\n\n2"),
        ({"content": None, "reasoning": "hm"}, "length", "<think>\nhm"),
    ]:
        server.behave = lambda path, body, n, m=message, r=reason: chat_answer(r, **m)  # type: ignore[misc]
        (completion,) = engine.generate([request(prompt=())])
        assert completion.pieces == (text.encode(),)
        assert completion.generated == 7
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "1 + 1?"}]
    assert "neither prompt tokens nor a question" in failure(engine, replace(request(prompt=()), question=""))


def test_told_tokens_are_pieces_without_the_end_token(server: StandIn) -> None:
    engine = HttpEngine(server.url)
    plain = {"tokens": ["1", " +"], "token_logprobs": [-0.1, -0.2]}
    ended = {"tokens": ["1", " +", "<|im_end|>"], "token_logprobs": [-0.1, -0.2, -0.3]}
    silent = {"content": [{"token": t, "logprob": p} for t, p in [("1", -0.1), (" +", -0.2), ("", -0.3)]]}
    for logprobs, count in ((plain, 2), (ended, 3), (silent, 3)):
        server.behave = lambda path, body, n, p=logprobs: text_answer("1 +", usage=None, logprobs=p)  # type: ignore[misc]
        (completion,) = engine.generate([request(logprobs=True)])
        assert completion.pieces == (b"1", b" +")
        assert completion.logprobs == (-0.1, -0.2)
        assert completion.generated == count
    halves = {"content": [{"token": "�", "logprob": -1.0, "bytes": list(b)} for b in (b"\xc3", b"\xb6")]}
    server.behave = lambda path, body, n: text_answer("ö", logprobs=halves)
    assert [c.pieces for c in engine.generate([request(logprobs=True)])] == [(b"\xc3", b"\xb6")]
    server.behave = lambda path, body, n: text_answer()
    assert "tells no log-probabilities" in failure(engine, request(logprobs=True))


def test_the_tokenizer_cuts_the_text_where_the_counts_agree(server: StandIn, folder: Path) -> None:
    engine = HttpEngine(server.url, tokenizer=folder)
    known = ChatTokenizer(folder)
    pieces = tuple(known.pieces[i] for i in known.encode(TEXT))
    for usage, reason, expected in [
        (len(pieces), "length", pieces),
        (len(pieces) + 1, "stop", pieces),
        (len(pieces) + 1, "length", (TEXT.encode(),)),
        (len(pieces) + 9, "stop", (TEXT.encode(),)),
    ]:
        server.behave = lambda path, body, n, u=usage, r=reason: text_answer(TEXT, r, u)  # type: ignore[misc]
        (completion,) = engine.generate([request()])
        assert completion.pieces == expected
        assert completion.token_ids == ()


def test_bad_settings_and_absent_servers_are_named(server: StandIn, folder: Path) -> None:
    with pytest.raises(RpamError, match="serves no model 'third'; it has first, second"):
        HttpEngine(server.url, "third")
    for url in ("localhost:8000", "ftp://host", "http://", ""):
        with pytest.raises(RpamError, match="is no server's url"):
            HttpEngine(url)
    with pytest.raises(RpamError, match="parallel=0"):
        HttpEngine(server.url, parallel=0)
    with pytest.raises(RpamError) as caught:
        HttpEngine(server.url, api_key="s3\ncret")
    assert "cret" not in str(caught.value).replace("secret", "")
    with pytest.raises(RpamError, match=r"127\.0\.0\.1:9/v1/models: the connection fails .*tried 2 times"):
        HttpEngine("http://127.0.0.1:9", retries=1)
    server.models = [{"id": "m", "owned_by": "library"}]
    assert HttpEngine(server.url).name == "m"
    with pytest.raises(RpamError, match="is an Ollama server"):
        HttpEngine(server.url, tokenizer=folder)


@pytest.fixture(scope="module")
def llama_server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """llama-cpp-python's server on a tiny GGUF file."""
    for package in ("uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(package, reason=f"llama-cpp-python's server needs {package}")
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    source = CheckpointSource(folder)
    write_gguf(source, source.config, source.folder, file, "F16", "test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", str(file), "--port", str(port), "--n_ctx", "512", "--n_threads", "1"]
    log = file.with_name("server.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *arguments, "--logits_all", "true", "--model_alias", "tiny"],
            stdout=stream,
            stderr=stream,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/v1/models", timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            pytest.fail(f"llama-cpp-python's server does not start: {log.read_text()[-500:]}")
        yield url, file
    finally:
        process.terminate()
        process.wait(10)


def test_llama_cpp_pythons_server_answers_as_the_file_does(llama_server: tuple[str, Path], folder: Path) -> None:
    url, file = llama_server
    served = HttpEngine(url, tokenizer=folder, parallel=2)
    assert served.name == "tiny"
    questions = [f"What is {i} + 1?" for i in range(3)]
    with LlamaCppEngine(file, 2, threads=1) as local:
        asked = [Request(q, local.chat_prompt(q), 12, logprobs=True, question=q) for q in questions]
        expected = {c.key: c for c in local.generate([replace(r, logprobs=False) for r in asked])}
    assert [served.chat_prompt(q) for q in questions] == [r.prompt for r in asked]
    found = {c.key: c for c in served.generate(asked)}
    asked_server = {c.key: c for c in HttpEngine(url).generate([replace(r, prompt=(), logprobs=False) for r in asked])}
    for key, completion in expected.items():
        # This server drops the bytes of a random model that are no UTF-8, and does not count the end token.
        text = b"".join(completion.pieces).decode("utf-8", errors="ignore")
        assert found[key].text == text
        assert found[key].finish_reason == completion.finish_reason
        assert found[key].generated == len(completion.token_ids)
        assert len(found[key].logprobs or ()) == len(completion.token_ids)
        assert all(p <= 0 for p in found[key].logprobs or ())
        assert asked_server[key].text == text
    assert any(len(set(c.token_ids)) > 1 for c in expected.values())


def test_one_call_evaluates_a_file_a_folder_in_nf4_and_a_server(
    llama_server: tuple[str, Path], folder: Path, tmp_path: Path
) -> None:
    url, file = llama_server
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    models = [load(file, threads=1), load(folder, bits=4), load(url, tokenizer=folder, parallel=2)]
    result = evaluate(
        models, [tmp_path / "sums.jsonl"], sampling=Sampling(), max_tokens=12, records=tmp_path / "records"
    )
    for model in models:
        model.close()
    assert [run.name for run in result.runs] == ["model", "hf-nf4", "tiny"]
    from_file, _, served = (run.records["sums"] for run in result.runs)
    # This server drops bytes that are no UTF-8.
    assert [r.text for r in served] == [r.text.replace("\ufffd", "") for r in from_file]
    assert all(0 < r.tokens <= 12 for run in result.runs for r in run.records["sums"])
    assert len(result.compare().differences) == 3
