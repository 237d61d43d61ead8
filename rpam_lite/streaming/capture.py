"""Run both parents over the calibration set and keep their hidden states.

Both parents see the same token ids: one neutral prompt, the one used for answering later, and the
selected parent's response. Each keeps its own stream, so the state that the fit pushes away from
is really the other parent's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from rpam_lite.checkpoint.files import whole_file, write_json
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import (
    PARENTS,
    CalibrationSet,
    Targets,
    layer_file,
    save_layer,
    save_questions,
    save_targets,
)
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import merged_layer, merged_tensor, one_parent
from rpam_lite.streaming.next_token import top_k_targets
from rpam_lite.streaming.top_k import MOST_TOP_K, SAMPLE, TopK, choose_top_k, powers_of_two
from rpam_lite.streaming.weights import WeightSource


class Labelled(Protocol):
    """What the capture needs of a labelled question."""

    @property
    def label(self) -> str: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def response_ids(self) -> tuple[int, ...]: ...


def choose_questions(questions: Sequence[Any], per_class: int, seed: int) -> list[Any]:
    """Up to `per_class` questions of each label, evenly over their levels, drawn with `seed`, in their first order.

    Within a label the levels take turns, each giving a random question of its own, until there are enough or
    no more; a level that has run out is passed over. So a label holds every level as often as every other, as
    far as there are such questions, however uneven the question file is.
    """
    chosen: list[int] = []
    for label in PARENTS:
        draw = random.Random(f"{seed}-{label}")
        levels: dict[int, list[int]] = {}
        for i, question in enumerate(questions):
            if question.label == label:
                levels.setdefault(question.level, []).append(i)
        shuffled = [draw.sample(levels[level], len(levels[level])) for level in sorted(levels)]
        draw.shuffle(shuffled)  # or the last turn, which may not go round, would always favour the easy ones
        turns = [i for turn in zip_longest(*shuffled) for i in turn if i is not None]
        chosen += turns[:per_class]
    return [questions[i] for i in sorted(chosen)]


def calibration_set(questions: Sequence[Labelled], settings: Capture) -> CalibrationSet:
    """Token ids and kept positions of the chosen questions."""
    answers = [q.response_ids[: settings.answer_tokens] for q in questions]
    return CalibrationSet(
        token_ids=[torch.tensor(q.prompt_ids + answer) for q, answer in zip(questions, answers, strict=True)],
        prompt_lengths=[len(q.prompt_ids) for q in questions],
        is_long=torch.tensor([q.label == "long" for q in questions]),
        positions=[
            kept_positions(len(q.prompt_ids), len(answer), settings)
            for q, answer in zip(questions, answers, strict=True)
        ],
    )


def kept_positions(prompt: int, response: int, settings: Capture) -> torch.Tensor:
    """Positions that the recipe keeps, ascending, int64.

    Raises:
        RpamError: Nothing is left.
    """
    kept = torch.zeros(prompt + response, dtype=torch.bool)
    if "prompt" in settings.positions:
        kept[:prompt] = True
    if "last_prompt_token" in settings.positions:
        kept[prompt - 1] = True
    if "response" in settings.positions:
        length = response if settings.response_tokens is None else settings.response_tokens
        kept[prompt : prompt + length : settings.response_stride] = True
    if settings.skip_first_token:
        kept[0] = False
    if not kept.any():
        raise RpamError(f"`capture.positions` {settings.positions!r} keeps no position; add 'prompt' or 'response'.")
    return kept.nonzero().flatten()


@torch.no_grad()
def capture(
    source: WeightSource,
    ends: Ends,
    questions: CalibrationSet,
    batches: Sequence[Sequence[int]],
    top_k: int | Literal["auto"],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    on_layer: Callable[[], None] = lambda: None,
    most_top_k: int = MOST_TOP_K,
) -> TopK:
    """Write both parents' hidden states and their next-token distributions.

    Layer by layer: each is loaded once and run for both parents. The streams between two layers are
    kept in the folder until the next layer is done, so that an interrupted capture goes on there.

    Args:
        source: The decoder layers of both parents.
        ends: Their embeddings and heads.
        questions: The calibration set.
        batches: Its questions in micro-batches.
        top_k: Next-token log-probabilities kept a position; `auto`: as many as the parents' own KL divergence needs.
        folder: Where the files go, each whole or absent.
        dtype: What the layers compute in.
        on_layer: Called after each layer.
        most_top_k: What `auto` takes at most.

    Returns:
        The k that is kept, and how much of the KL divergence it loses.

    Raises:
        RpamError: A hidden state is inf or NaN.
    """
    skeleton = source.skeleton
    save_questions(questions, folder)
    ids = [pad_sequence([questions.token_ids[q] for q in batch], batch_first=True) for batch in batches]
    positions = [pad_sequence([questions.positions[q] for q in batch], batch_first=True) for batch in batches]
    streams: dict[str, list[torch.Tensor]] = {parent: [] for parent in PARENTS}
    calls = []
    for tokens in ids:
        for parent in PARENTS:
            pair = ends.embedding(tokens)
            embedded = merged_tensor(pair, one_parent(parent, skeleton.device)(skeleton.embedding), dtype)
            first, own_calls = skeleton.calls(embedded)
            streams[parent].append(first.cpu())
        calls.append(own_calls)
    done = _resume(folder, streams, skeleton.layers)
    for _ in range(done):
        on_layer()
    for layer, pairs in source.sweep(range(done, skeleton.layers)):
        kept: dict[str, list[torch.Tensor]] = {}
        for parent in PARENTS:
            tensors = merged_layer(pairs, {t: t for t in pairs}, one_parent(parent, skeleton.device), dtype)
            kept[parent] = [torch.empty(0)] * len(questions)
            for b, batch in enumerate(batches):
                output = skeleton.run_layer(layer, tensors, streams[parent][b].to(skeleton.device), calls[b][layer])
                check_finite(output, layer, batch)
                streams[parent][b] = output.cpu()
                for row, q in enumerate(gather_positions(output, positions[b]).float().cpu()):
                    kept[parent][batch[row]] = q[: len(questions.positions[batch[row]])]
        # As they are stored: rounding is no distance, where both parents agree.
        stored = {parent: [states.bfloat16().float() for states in kept[parent]] for parent in PARENTS}
        gaps = [(a - b).square().sum() for a, b in zip(stored["long"], stored["short"], strict=True)]
        _save_streams(folder, streams, layer)
        save_layer(kept["long"], kept["short"], torch.stack(gaps).mean(), folder, layer)
        _streams_file(folder, layer - 1).unlink(missing_ok=True)
        on_layer()
    most = min(most_top_k if top_k == "auto" else top_k, ends.vocabulary)
    kept_k = _measured_top_k(
        ends, questions, batches, streams, powers_of_two(most) if top_k == "auto" else [most], dtype
    )
    write_json(folder / "top_k.json", {"version": 1, "setting": top_k, **asdict(kept_k)})
    selected = _targets(ends, questions, batches, streams, kept_k.top_k, dtype)
    save_targets(selected, _targets(ends, questions, batches, streams, kept_k.top_k, dtype, of_other=True), folder)
    _streams_file(folder, skeleton.layers - 1).unlink(missing_ok=True)
    return kept_k


def _measured_top_k(
    ends: Ends,
    questions: CalibrationSet,
    batches: Sequence[Sequence[int]],
    streams: dict[str, list[torch.Tensor]],
    candidates: list[int],
    dtype: torch.dtype,
) -> TopK:
    """Choose k on target positions spread evenly over all questions."""
    place = {q: (b, row) for b, batch in enumerate(batches) for row, q in enumerate(batch)}
    positions = [(q, at) for q in range(len(questions)) for at in questions.target_positions(q).tolist()]
    sample = positions[:: -(-len(positions) // SAMPLE)]
    states = {
        parent: torch.stack([streams[parent][place[q][0]][place[q][1], at] for q, at in sample]) for parent in PARENTS
    }
    return choose_top_k(ends, states, questions.is_long[[q for q, _ in sample]], candidates, dtype)


def _targets(
    ends: Ends,
    questions: CalibrationSet,
    batches: Sequence[Sequence[int]],
    streams: dict[str, list[torch.Tensor]],
    top_k: int,
    dtype: torch.dtype,
    of_other: bool = False,
) -> Targets:
    """The selected parent's distribution at every question's target positions, in the questions' order.

    With `of_other` the other parent's, and at the first of these positions alone.
    """
    found: dict[int, Targets] = {}
    for parent in PARENTS:
        own = [q for q in range(len(questions)) if bool(questions.is_long[q]) == ((parent == "long") != of_other)]
        place = {q: (b, row) for b, batch in enumerate(batches) for row, q in enumerate(batch)}
        read = {q: questions.target_positions(q)[: 1 if of_other else None] for q in own}
        final = [streams[parent][place[q][0]][place[q][1], read[q]] for q in own]
        targets = top_k_targets(ends, final, one_parent(parent, ends.device), top_k, dtype)
        found |= dict(zip(own, targets, strict=True))
    in_order = [found[q] for q in range(len(questions))]
    return Targets(*(torch.cat([getattr(t, f) for t in in_order]) for f in ("ids", "logprobs", "tail")))


def _streams_file(folder: Path, layer: int) -> Path:
    """Both parents' streams after a layer, kept until the next one is done."""
    return folder / f"streams-{layer:03}.pt"


def _save_streams(folder: Path, streams: dict[str, list[torch.Tensor]], layer: int) -> None:
    with whole_file(_streams_file(folder, layer)) as part:
        torch.save(streams, part)


def _resume(folder: Path, streams: dict[str, list[torch.Tensor]], layers: int) -> int:
    """Load the streams of the last layer that an interrupted capture finished; give the number of layers done."""
    for layer in range(layers - 1, -1, -1):
        if _streams_file(folder, layer).exists() and layer_file(folder, layer).exists():
            streams.update(torch.load(_streams_file(folder, layer), weights_only=True))
            return layer + 1
    return 0


def gather_positions(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [questions, kept, hidden] at `positions` [questions, kept] of [questions, length, hidden]."""
    index = positions.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def check_finite(states: torch.Tensor, layer: int, questions: Sequence[int]) -> None:
    """Refuse inf and NaN at once, naming where they appeared."""
    if not torch.isfinite(states).all():
        bad = (~torch.isfinite(states)).flatten(1).any(1).nonzero().flatten().tolist()
        raise RpamError(
            f"Hidden states of decoder layer {layer} hold inf or NaN on calibration question {questions[bad[0]]}; "
            "the checkpoint is damaged, or its weights overflow."
        )
