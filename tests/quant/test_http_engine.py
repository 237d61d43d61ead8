"""The HTTP engine against a strict stand-in: what is sent, and what is made of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.engines import Sampling
from quant.engines.chat import ChatTokenizer
from quant.engines.http import HttpEngine
from rpam_lite.errors import RpamError
from tests.quant.http_server import TEXT, Answer, StandIn, as_json, chat_answer, failure, request, text_answer

pytestmark = pytest.mark.usefixtures("short_waits")


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
