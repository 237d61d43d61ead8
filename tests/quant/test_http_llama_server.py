"""The HTTP engine against llama-cpp-python's own server, which must answer as the file does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from export.gguf.write import write_gguf
from quant import evaluate, load
from quant.engines import Request, Sampling
from quant.engines.http import HttpEngine
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.checkpoint.source import CheckpointSource

pytestmark = pytest.mark.usefixtures("short_waits")


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
        logprobs = found[key].logprobs
        assert logprobs is not None
        assert len(logprobs) == len(completion.token_ids)
        assert all(p <= 0 for p in logprobs)
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
