"""Run both parents over the calibration set and keep their hidden states.

Both parents see the same token ids: one neutral prompt, the one used for answering later, and the
selected parent's response. Each keeps its own stream, so the state that the fit pushes away from
is really the other parent's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from rpam_lite.checkpoint.files import read_json, save_state, write_json
from rpam_lite.errors import RpamError
from rpam_lite.streaming.activations import (
    PARENTS,
    CalibrationSet,
    Targets,
    layer_file,
    save_layer,
    save_questions,
    save_targets,
    targets_file,
)
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import merged_layer, merged_tensor, one_parent
from rpam_lite.streaming.next_token import top_k_targets
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.stubs import LayerCall
from rpam_lite.streaming.top_k import MOST_TOP_K, SAMPLE, TopK, choose_top_k, powers_of_two
from rpam_lite.streaming.weights import LayerPairs, WeightSource

_TOP_K = "top_k.json"
Streams = dict[str, list[torch.Tensor]]  # by parent, one [questions, length, hidden] a micro-batch, on the host


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
    if (finished := _finished(folder, skeleton.layers)) is not None:
        for _ in range(skeleton.layers):
            on_layer()
        return finished
    save_questions(questions, folder)
    streams, calls = _enter(ends, skeleton, questions, batches, dtype)
    done = _resume(folder, streams, skeleton.layers)
    for _ in range(done):
        on_layer()
    for layer, pairs in source.sweep(range(done, skeleton.layers)):
        long, short = (
            _through_layer(skeleton, layer, pairs, parent, streams[parent], calls, questions, batches, dtype)
            for parent in PARENTS
        )
        _save_streams(folder, streams, layer)
        save_layer(long, short, _mean_gap(long, short, questions), folder, layer)
        _streams_file(folder, layer - 1).unlink(missing_ok=True)
        on_layer()
    final = Final({q: (b, row) for b, batch in enumerate(batches) for row, q in enumerate(batch)}, streams)
    most = min(most_top_k if top_k == "auto" else top_k, ends.vocabulary)
    kept_k = _measured_top_k(ends, questions, final, powers_of_two(most) if top_k == "auto" else [most], dtype)
    write_json(folder / _TOP_K, {"version": 1, "setting": top_k, **asdict(kept_k)})
    selected, other = (_targets(ends, questions, final, kept_k.top_k, dtype, of_other) for of_other in (False, True))
    save_targets(selected, other, folder)
    _streams_file(folder, skeleton.layers - 1).unlink(missing_ok=True)
    return kept_k


def _enter(
    ends: Ends, skeleton: Skeleton, questions: CalibrationSet, batches: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[Streams, list[list[LayerCall]]]:
    """Both parents' streams below the first layer, and every micro-batch's layer calls."""
    streams: Streams = {parent: [] for parent in PARENTS}
    calls = []
    for batch in batches:
        pair = ends.embedding(pad_sequence([questions.token_ids[q] for q in batch], batch_first=True))
        for parent in PARENTS:
            embedded = merged_tensor(pair, one_parent(parent, skeleton.device)(skeleton.embedding), dtype)
            first, own_calls = skeleton.calls(embedded)
            streams[parent].append(first.cpu())
        calls.append(own_calls)
    return streams, calls


def _through_layer(
    skeleton: Skeleton,
    layer: int,
    pairs: LayerPairs,
    parent: str,
    stream: list[torch.Tensor],
    calls: list[list[LayerCall]],
    questions: CalibrationSet,
    batches: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Take one parent's stream through a layer; give its states at the kept positions, bf16 [kept of all, hidden].

    A function of its own, so that one parent's tensors are gone before the other's are made.
    """
    tensors = merged_layer(pairs, {t: t for t in pairs}, one_parent(parent, skeleton.device), dtype)
    counts = [len(positions) for positions in questions.positions]
    kept = torch.empty(sum(counts), stream[0].shape[-1], dtype=torch.bfloat16)
    of_question = torch.split(kept, counts)
    for b, batch in enumerate(batches):
        output = skeleton.run_layer(layer, tensors, stream[b].to(skeleton.device), calls[b][layer])
        check_finite(output, layer, batch)
        stream[b] = output.cpu()
        positions = pad_sequence([questions.positions[q] for q in batch], batch_first=True)
        for q, states in zip(batch, gather_positions(output, positions).float().cpu(), strict=True):
            of_question[q].copy_(states[: counts[q]])
    return kept


def _mean_gap(long: torch.Tensor, short: torch.Tensor, questions: CalibrationSet) -> torch.Tensor:
    """Mean over the questions of the squared distance of both parents' states, as they are stored."""
    counts = [len(positions) for positions in questions.positions]
    pairs = zip(torch.split(long, counts), torch.split(short, counts), strict=True)
    return torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).mean()


class Final(NamedTuple):
    """Both parents' streams above the last layer, by question.

    Attributes:
        places: Micro-batch and row of every question.
        streams: By parent, one [questions, length, hidden] a micro-batch.
    """

    places: dict[int, tuple[int, int]]
    streams: Streams

    def at(self, parent: str, question: int, positions: torch.Tensor) -> torch.Tensor:
        """One parent's states at positions of a question [positions, hidden]."""
        batch, row = self.places[question]
        return self.streams[parent][batch][row, positions]


def _measured_top_k(
    ends: Ends,
    questions: CalibrationSet,
    final: Final,
    candidates: list[int],
    dtype: torch.dtype,
) -> TopK:
    """Choose k on target positions spread evenly over all questions."""
    positions = [(q, at) for q in range(len(questions)) for at in questions.target_positions(q)]
    sample = positions[:: -(-len(positions) // SAMPLE)]
    states = {parent: torch.stack([final.at(parent, q, at) for q, at in sample]) for parent in PARENTS}
    return choose_top_k(ends, states, questions.is_long[[q for q, _ in sample]], candidates, dtype)


def _targets(
    ends: Ends,
    questions: CalibrationSet,
    final: Final,
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
        read = [questions.target_positions(q)[: 1 if of_other else None] for q in own]
        states = [final.at(parent, q, at) for q, at in zip(own, read, strict=True)]
        targets = top_k_targets(ends, states, one_parent(parent, ends.device), top_k, dtype)
        found |= dict(zip(own, targets, strict=True))
    return Targets.joined([found[q] for q in range(len(questions))])


def _streams_file(folder: Path, layer: int) -> Path:
    """Both parents' streams after a layer, kept until the next one is done."""
    return folder / f"streams-{layer:03}.pt"


def _save_streams(folder: Path, streams: Streams, layer: int) -> None:
    save_state(streams, _streams_file(folder, layer))


def _finished(folder: Path, layers: int) -> TopK | None:
    """What an earlier call kept, where it wrote its last file."""
    files = [targets_file(folder), folder / _TOP_K, *(layer_file(folder, layer) for layer in range(layers))]
    if not all(file.exists() for file in files):
        return None
    told = read_json(folder / _TOP_K, "the capture's record of k")
    return TopK(**{field.name: told[field.name] for field in fields(TopK)})


def _resume(folder: Path, streams: Streams, layers: int) -> int:
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
