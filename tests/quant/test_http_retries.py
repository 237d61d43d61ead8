"""The HTTP engine against a stand-in that misbehaves: what is asked again, what is given up, and what is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quant.engines import Completion, Sampling
from quant.engines.http import HttpEngine
from rpam_lite.errors import RpamError
from tests.quant.http_server import TEXT, Answer, StandIn, as_json, failure, request, text_answer

pytestmark = pytest.mark.usefixtures("short_waits")


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


def collect(running: Iterator[Completion], done: list[str]) -> None:
    for completion in running:
        done.append(completion.key)


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
