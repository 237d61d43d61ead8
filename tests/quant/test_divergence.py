"""Divergence and perplexity: against scipy and torch, against llama.cpp's own tool, and in bounded memory."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from export.gguf.write import write_gguf
from quant import llama_compat
from quant.divergence import compare, compare_rows, divergence, log_perplexity_ratio, perplexity, summarize
from quant.engines.llama_cpp import LlamaCppEngine
from quant.engines.passes import CHUNK
from quant.logits import LogitsModel, folder_model, open_model
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import ROOT, make_checkpoint

PAIR = ROOT / "recipes" / "tiny"


def export(checkpoint: Path, path: Path, file_type: Any = "F32") -> Path:
    source = CheckpointSource(checkpoint)
    write_gguf(source, source.config, checkpoint, path, file_type, "test")
    return path


def random_model(name: str, vocabulary: int, seed: int, scale: float = 3.0) -> LogitsModel:
    """A model whose logits depend on nothing but the position."""

    def logits(tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        for start in range(0, len(tokens), CHUNK):
            rows = np.random.default_rng((seed, start)).standard_normal((CHUNK, vocabulary), np.float32) * scale
            if start + CHUNK > first:
                yield rows[max(0, first - start) : len(tokens) - start]

    return LogitsModel(name, vocabulary, logits)


def rows_of(model: LogitsModel, tokens: Sequence[int], first: int = 0) -> np.ndarray:
    return np.concatenate([part.copy() for part in model.logits(tokens, first)])


def test_rows_are_compared_exactly() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.normal(0, 5, (20, 300)).astype(np.float32) for _ in range(2))
    q[7] = p[7]
    following = rng.integers(0, 300, 20)
    kld, same, nll, base_nll = compare_rows(p, q, following)
    a, b = (torch.tensor(x).double().log_softmax(-1).numpy() for x in (p, q))
    assert kld == pytest.approx(stats.entropy(np.exp(a), np.exp(b), axis=-1), rel=1e-12)
    assert kld[7] == 0
    assert same.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    assert nll == pytest.approx(-b[np.arange(20), following])
    assert base_nll == pytest.approx(-a[np.arange(20), following])


def scalar_tool(base: np.ndarray, other: np.ndarray, token: int) -> tuple[float, bool, float, float]:
    """One position, line by line as perplexity.cpp's two functions `log_softmax` go, one token at a time."""
    f = np.float32
    top, low = max(base), min(base)
    low = max(low, f(top - f(16)))
    log_sum = f(math.log(sum(float(np.exp(f(x - top))) for x in base)))
    least, scale = f(f(low - top) - log_sum), f(f(top - low) / f(65535))
    inverse = f(f(1) / scale) if scale else f(0)
    stored = [int(f(f(inverse * f(x - low)) + f(12582912)) - f(12582912)) if scale and x > low else 0 for x in base]
    peak = max(other)
    log_sum = f(math.log(sum(float(np.exp(f(x - peak))) for x in other)))
    total, best, best_at = 0.0, f(-np.inf), -1
    for i, step in enumerate(stored):
        log_p = f(f(scale * f(step)) + least)
        if log_p > best:
            best, best_at = log_p, i
        if log_p > -16:
            total += float(f(np.exp(log_p) * f(f(log_p - other[i]) + f(peak + log_sum))))
    nll, base_nll = f(f(peak + log_sum) - other[token]), -f(f(scale * f(stored[token])) + least)
    return total, best_at == int(np.argmax(other)), float(nll), float(base_nll)


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0, 12.0])
def test_the_compatible_mode_is_the_tools_arithmetic(spread: float) -> None:
    """Up to logits so far apart that the base is cut at 16 below its top and small probabilities are left out."""
    rng = np.random.default_rng(2)
    p = rng.normal(0, spread, (12, 200)).astype(np.float32)
    q = (p + rng.normal(0, 0.3, p.shape)).astype(np.float32)
    following = rng.integers(0, 200, 12)
    found = llama_compat.compare_rows(p, q, following)
    for i, row in enumerate(zip(*found, strict=True)):
        kld, same, nll, base_nll = scalar_tool(p[i], q[i], int(following[i]))
        assert row[0] == pytest.approx(kld, rel=1e-6, abs=2e-7)
        assert bool(row[1]) == same
        assert row[2:] == pytest.approx((nll, base_nll), rel=1e-6)
    if spread == 12:
        steps, scale, _ = llama_compat.stored_log_probabilities(p)
        assert scale == pytest.approx([16 / 65535] * 12)
        assert (steps == 0).sum() > 1000
        assert (found[0] != compare_rows(p, q, following)[0]).any()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    long, short = (export(PAIR / name, folder / f"{name}.gguf", "F16") for name in ("long", "short"))
    return long, short


def pair_text() -> str:
    rows = [json.loads(line) for line in (PAIR / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:400]]
    return "\n".join(f"{row['question']} <think>\n{row['answer']}</think>" for row in rows)


def test_the_compatible_mode_gives_the_figures_of_llama_perplexity(pair: tuple[Path, Path]) -> None:
    """Written by llama-perplexity of llama-cpp-python 0.3.36 on this text, `-c 128 -b 512 --chunks 12`.

    llama-perplexity -m long.gguf -f text --kl-divergence-base base.dat, and again with
    -m short.gguf --kl-divergence. (That the pair is lost on this text makes the figures large, not other.) All
    digits agree on the machine that wrote them; on another one llama.cpp itself rounds otherwise.
    """
    with LlamaCppEngine(pair[0]) as engine:
        sequences, starts = llama_compat.text_windows(engine, pair_text(), 128)
    sequences, starts = sequences[:12], starts[:12]
    with open_model(pair[0], 1, exact=False) as base, open_model(pair[1], 1, exact=False) as other:
        scores = compare(base, other, sequences, starts, llama_compat=True)
    found, ratio = summarize(scores.kld, scores.same), log_perplexity_ratio(scores)
    assert found.positions == 12 * 63
    assert (found.mean, found.error) == pytest.approx((3.655666, 0.155613), rel=1e-3)
    told = (20.018013, 18.045109, 16.601973, 12.763957, 10.449262, 1.801588)
    ours = (found.largest, found.p99_9, found.p99, found.p95, found.p90, found.median)
    assert ours == pytest.approx(told, rel=2e-3)
    assert (found.same_top, found.same_top_error) == pytest.approx((0.42196, 0.01797), abs=3e-3)
    assert ratio == pytest.approx((-0.407044, 0.149558), rel=2e-3)
    assert perplexity(scores.nll).value == pytest.approx(21110.801684, rel=2e-3)
    assert perplexity(scores.base_nll).value == pytest.approx(31716.234049, rel=2e-3)
    assert perplexity(scores.nll).nll_error == pytest.approx(2841.488754 / 21110.801684, rel=1e-3)
    (again,) = divergence(pair[0], [pair[1]], sequences, starts, threads=1, llama_compat=True)
    assert again == found
    (exact,) = divergence(pair[0], [pair[1]], sequences, starts, threads=1)
    assert exact.mean != found.mean
    assert exact.mean == pytest.approx(found.mean, rel=1e-3)


def test_windows_are_the_tools() -> None:
    sequences, starts = llama_compat.windows(range(100, 130), 8, bos=1)
    assert sequences == [[1, *range(100 + 8 * i + 1, 108 + 8 * i)] for i in range(3)]
    # Scored are positions 4 to 6: what they predict are tokens 5 to 7.
    assert starts == [5, 5, 5]
    assert llama_compat.windows(range(16), 8)[0][1] == list(range(8, 16))
    with pytest.raises(RpamError, match="has 15 tokens and windows of 8 need at least 16"):
        llama_compat.windows(range(15), 8)
    with pytest.raises(RpamError, match="a window of 3 tokens"):
        llama_compat.windows(range(15), 3)


def test_a_text_is_tokenized_with_its_markers_as_plain_text(pair: tuple[Path, Path]) -> None:
    with LlamaCppEngine(pair[0]) as engine:
        (first, *_), _ = llama_compat.text_windows(engine, "<|im_end|>" * 10, 8)
        (marker,) = engine.tokenize("<|im_end|>")
    assert marker not in first


def test_a_trace_is_scored_from_its_answer_on() -> None:
    """Chunks of 64 must line up whatever the prompt's length."""
    a, b = random_model("a", 50, 1), random_model("b", 50, 2)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 50, 200)]
    for start in (1, 63, 64, 65, 66, 130, 199):
        scores = compare(a, b, [tokens], [start])
        expected = compare_rows(*(rows_of(m, tokens)[start - 1 : -1] for m in (a, b)), np.array(tokens[start:]))
        for ours, theirs in zip(vars(scores).values(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_logits_of_a_trace_are_never_held() -> None:
    vocabulary, tokens = 5_000, 20 * CHUNK
    a, b = random_model("a", vocabulary, 1), random_model("b", vocabulary, 2)
    tracemalloc.start()
    scores = compare(a, b, [[0] * tokens], [1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scores.kld) == tokens - 1
    chunk = CHUNK * vocabulary * 4
    # Two chunks of each model (one may be made while the last is let go), and the float64 rows.
    assert 2 * chunk < peak < 6 * chunk


def test_a_folder_and_its_file_are_one_model(tmp_path: Path, tokenizer: Any) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", 3, tokenizer)
    ids = torch.randint(0, 470, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    with open_model(checkpoint) as folder, open_model(export(checkpoint, tmp_path / "model.gguf"), 1) as file:
        assert (
            [len(part) for part in file.logits(ids, 70)] == [len(part) for part in folder.logits(ids, 70)] == [58, 22]
        )
        of_file, of_folder = rows_of(file, ids), rows_of(folder, ids)
        np.testing.assert_allclose(rows_of(file, ids, 70), of_file[70:], atol=1e-5)
        np.testing.assert_allclose(rows_of(folder, ids, 70), of_folder[70:], atol=1e-5)
        np.testing.assert_allclose(of_folder, of_file, atol=1e-4)
        scores = compare(folder, file, [ids], [1])
    assert scores.kld.max() < 1e-8
    assert scores.same.all()
    found, following = perplexity(scores.base_nll), torch.tensor(ids[1:])
    losses = torch.nn.functional.cross_entropy(torch.tensor(of_folder[:-1]).double(), following, reduction="none")
    assert found.value == pytest.approx(losses.mean().exp().item(), rel=1e-9)
    assert found.nll_error == pytest.approx(stats.sem(losses.numpy()), rel=1e-9)


def test_figures_are_those_of_numpy() -> None:
    klds = np.random.default_rng(5).exponential(size=1001)
    same = np.arange(1001) < 901
    found = summarize(klds, same)
    assert (found.p1, found.p5, found.p10, found.median) == pytest.approx(np.sort(klds)[[10, 50, 100, 500]])
    assert (found.p90, found.p95, found.p99, found.p99_9) == pytest.approx(np.sort(klds)[[900, 950, 990, 999]])
    assert found.error == pytest.approx(stats.sem(klds))
    assert found.same_top_error == pytest.approx(math.sqrt(901 / 1001 * 100 / 1001 / 1000))


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = random_model("a", 50, 1), random_model("b", 51, 2)
    with pytest.raises(RpamError, match="b has a vocabulary of 51 tokens and a one of 50"):
        compare(a, b, [[1, 2]], [1])
    with pytest.raises(RpamError, match="nothing to compare a on"):
        compare(a, a, [], [])
    for start in (0, 2):
        with pytest.raises(RpamError, match=f"sequence 1 of 2 tokens can't be compared from token {start} on"):
            compare(a, a, [[1, 2]], [start])
    with pytest.raises(RpamError, match="gives logits that are inf or NaN"):
        compare(a, random_model("c", 50, 1, math.nan), [[1, 2]], [1])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RpamError, match="transformers can't load it"):
        folder_model(tmp_path)
