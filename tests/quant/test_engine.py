"""The llama.cpp engine: many sequences side by side give what one at a time gives."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch

from export.gguf.write import write_gguf
from quant.asking import answer_questions
from quant.engines import Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.gguf import Settings, quantization_types, quantize
from quant.models import load
from quant.records import Record, read_records, think_block
from quant.summary import summarize, summarize_by_level
from quant.tasks.questions import Question
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.vocabulary import chat_template
from rpam_lite.errors import RpamError
from tests.conftest import make_checkpoint


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    source = CheckpointSource(folder)
    write_gguf(source, source.config, source.folder, file, "F16", "test")
    return file


def complete(file: Path, parallel: int, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    with LlamaCppEngine(file, parallel, threads=1) as engine:
        return {c.key: c.token_ids for c in engine.generate(requests)}


def requests(sampling: Sampling, count: int = 7) -> list[Request]:
    return [Request(str(i), tuple(range(10, 13 + 3 * i)), 10 + i, sampling) for i in range(count)]


def test_side_by_side_equals_one_at_a_time(model: Path) -> None:
    alone = complete(model, 1, requests(Sampling()))
    assert complete(model, 3, requests(Sampling())) == alone
    assert complete(model, 16, requests(Sampling())) == alone
    assert any(len(set(ids)) > 1 for ids in alone.values())


def test_a_long_chat_template_is_read_whole(tmp_path: Path, tokenizer: Any) -> None:
    folder = make_checkpoint(tmp_path / "hf", 5, tokenizer)
    before = chat_template(folder) or ""
    (folder / "chat_template.jinja").write_text("{#" + 70_000 * "x" + "#}" + before, encoding="utf-8")
    source = CheckpointSource(folder)
    write_gguf(source, source.config, source.folder, tmp_path / "long.gguf", "F16", "test")
    with LlamaCppEngine(tmp_path / "long.gguf", threads=1) as engine:
        assert (engine.metadata("tokenizer.chat_template") or "").endswith(before[-20:])
        assert engine.metadata("no.such.key") is None


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass of llama.cpp."""
    counts: list[int] = []
    real = llama_cpp.llama_decode

    def decode(context: Any, batch: Any) -> int:
        counts.append(batch.n_tokens)
        return int(real(context, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    return counts


@pytest.mark.parametrize("parallel", [1, 3, 4, 16])
def test_a_shared_beginning_is_read_once(model: Path, decoded: list[int], parallel: int) -> None:
    beginning = tuple(range(20, 220))
    asked = [Request(f"{q}/{i}", (*beginning, 300 + q), 8 + i) for q in range(3) for i in range(4)]
    alone = {}
    for request in asked:
        alone |= complete(model, 1, [request])
    generated = sum(len(ids) for ids in alone.values())
    assert len({ids[:8] for ids in alone.values()}) > 1
    decoded.clear()
    assert complete(model, parallel, asked) == alone
    # Prompts once, every answer, and idle tokens that keep the batch whole.
    assert sum(decoded) < 202 + 12 + 2 * generated
    decoded.clear()
    assert complete(model, 1, asked[:1]) == {"0/0": alone["0/0"]}
    assert decoded[0] == 201


def test_sampling_does_not_depend_on_its_neighbours(model: Path) -> None:
    asked = [Request(str(i), tuple(range(40)), 12, Sampling(1.2, 0.95, 40, seed=i)) for i in range(6)]
    together = complete(model, 4, asked)
    for request in asked:
        assert complete(model, 1, [request])[request.key] == together[request.key]
    assert len(set(together.values())) > 3


def test_log_probabilities_are_those_of_the_logits(model: Path) -> None:
    from quant.logits import sequence_logits

    request = Request("a", tuple(range(10, 30)), 10, Sampling(1.5, 0.9, 50, 7), logprobs=True)
    with LlamaCppEngine(model, 2, threads=1) as engine:
        (done,) = engine.generate([request])
        logits = np.concatenate([c.copy() for c in sequence_logits(engine, [*request.prompt, *done.token_ids])])
    rows = torch.from_numpy(logits[len(request.prompt) - 1 : -1]).double().log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, done.token_ids, strict=False)]
    assert done.logprobs == pytest.approx(expected, abs=0.02)
    assert done.seconds > 0


def test_what_does_not_fit_the_context_is_refused(model: Path) -> None:
    with LlamaCppEngine(model, 2, threads=1, context=32) as engine:
        (done,) = engine.generate([Request("a", tuple(range(10, 30)), 12)])
        assert done.generated <= 12
        with pytest.raises(RpamError, match="20 tokens and its answer may have 13, the context has only 32"):
            list(engine.generate([Request("b", tuple(range(10, 30)), 13)]))
        with pytest.raises(RpamError, match="the prompt of c is empty"):
            list(engine.generate([Request("c", (), 13)]))


def test_greedy_equals_llama_cpp_pythons_own_loop(model: Path) -> None:
    reference = llama_cpp.Llama(str(model), n_ctx=256, verbose=False, n_threads=1)
    found = complete(model, 4, requests(Sampling(), 4))
    for request in requests(Sampling(), 4):
        reference.reset()
        expected = []
        for token in reference.generate(list(request.prompt), temp=0.0, repeat_penalty=1.0):
            if llama_cpp.llama_vocab_is_eog(reference._model.vocab, token) or len(expected) == request.max_tokens:
                break
            expected.append(token)
        assert list(found[request.key]) == expected


def test_sampling_is_seeded(model: Path) -> None:
    def draw(seed: int) -> dict[str, tuple[int, ...]]:
        return complete(model, 4, requests(Sampling(1.5, 0.99, 0, seed)))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_long_answer_is_cut_and_says_so(model: Path) -> None:
    with LlamaCppEngine(model, 4, threads=1) as engine:
        completions = list(engine.generate(requests(Sampling())))
    cut = [c for c in completions if c.finish_reason == "length"]
    assert cut
    assert all(len(c.token_ids) == 10 + int(c.key) == c.generated for c in cut)


def test_no_file_and_no_gguf_are_named(tmp_path: Path) -> None:
    with pytest.raises(RpamError, match="no such GGUF file"):
        LlamaCppEngine(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(RpamError, match=r"bad\.gguf: llama\.cpp can't load it"):
        LlamaCppEngine(tmp_path / "bad.gguf")


def test_quantize_shrinks_and_still_runs(model: Path, tmp_path: Path) -> None:
    sizes = {}
    for name in ("Q8_0", "Q4_K_M"):
        target = tmp_path / f"{name}.gguf"
        quantize(model, target, name, Settings(threads=1))
        sizes[name] = target.stat().st_size
        assert complete(target, 2, requests(Sampling(), 2))
        again = tmp_path / "again.gguf"
        quantize(model, again, name, Settings(threads=1))
        assert again.read_bytes() == target.read_bytes()
    assert sizes["Q4_K_M"] < sizes["Q8_0"] < model.stat().st_size


def test_quantize_names_what_is_wrong(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RpamError, match=r"no type 'Q4_K_X'.*Q4_K_M"):
        quantize(model, tmp_path / "out.gguf", "Q4_K_X", Settings(threads=1))
    (tmp_path / "bad.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(RpamError, match=r"bad\.gguf: llama\.cpp failed to quantize it to Q8_0"):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", "Q8_0", Settings(threads=1))
    assert not list(tmp_path.glob("out*"))
    assert {"Q8_0", "Q4_K_M", "IQ4_XS", "Q6_K"} <= quantization_types().keys()


def test_evaluate_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    questions = [Question(str(i), f"What is {i} + 1?", str(i + 1), level=i % 2 + 1) for i in range(6)]
    file = tmp_path / "records.jsonl"
    with LlamaCppEngine(model, 2, threads=1) as engine:
        whole = answer_questions(engine, questions, file, 12)
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
        made = []
        again = answer_questions(engine, questions, file, 12, on_record=lambda record: made.append(1))
        assert [replace(r, seconds=0) for r in again] == [replace(r, seconds=0) for r in whole]
        assert len(made) == 3
        two = answer_questions(engine, questions, file, 12, samples=2, on_record=lambda record: made.append(2))
    assert made == [1] * 3 + [2] * 6
    assert [r.key for r in two[:3]] == ["0/0", "0/1", "1/0"]
    file.write_text(file.read_text(encoding="utf-8").replace('"version": 4', '"version": 2'), encoding="utf-8")
    with pytest.raises(RpamError, match="are of version 2, this release reads 4"):
        read_records(file)
    assert [r.question for r in whole] == [q.key for q in questions]
    summary = summarize(whole, 8)
    assert summary.questions == 6
    assert summary.accuracy == sum(r.correct for r in whole) / 6
    assert summarize_by_level(whole, 8).keys() == {1, 2}


@pytest.mark.parametrize(
    ("pieces", "count", "block"),
    [
        (["<think>", "a", "b", "</think>", "c"], 2, "closed"),
        (["a", "b"], 0, "none"),
        (["<think>", "a", "b"], 2, "open"),
        (["<", "think>", "a", "</th", "ink>", "c"], 2, "closed"),
        (["<think>", "</think>"], 0, "closed"),
        # The prompt had opened it.
        (["a", "b", "</think>", "c"], 2, "closed"),
    ],
)
def test_think_block(pieces: list[str], count: int, block: str) -> None:
    assert think_block([p.encode() for p in pieces]) == (count, block)


def test_a_think_block_that_the_prompt_opened_may_stay_open() -> None:
    assert think_block([b"a", b"b", b"c"], opened=True) == (3, "open")
    assert think_block([b"a", b"b", b"</think>"], opened=True) == (2, "closed")


def test_length_is_told_apart_by_what_became_of_the_think_block() -> None:
    records = [
        Record(str(i), str(i), 1, "", True, "", tokens, 0, block, "stop", "")
        for i, (tokens, block) in enumerate([(5, "none"), (90, "closed"), (110, "closed"), (300, "open")])
    ]
    blocks = summarize(records, 8).blocks
    assert [(b.share, b.tokens) for b in blocks.values()] == [(0.25, 5.0), (0.5, 100.0), (0.25, 300.0)]
    assert summarize(records[:1], 8).blocks["open"].tokens is None


def test_an_interrupt_while_llama_cpp_logs_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes drops an exception that is raised inside a callback."""
    real = llama_cpp.llama_model_load_from_file

    def load(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    with pytest.raises(KeyboardInterrupt):
        LlamaCppEngine(model)
    monkeypatch.undo()
    with LlamaCppEngine(model) as engine:
        assert engine.chat_prompt("1 + 1?")


def test_a_runs_folder_is_no_model(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "rpam.log"):
        (tmp_path / name).touch()
    (tmp_path / "quantize").mkdir()
    (tmp_path / "quantize/mine-q4_k_m.gguf").touch()
    with pytest.raises(RpamError, match=r"is a run's folder, not a model; .*mine-q4_k_m\.gguf"):
        load(tmp_path)
