"""Run both parents over the calibration set and keep their hidden states.

Both parents see the same token ids: one neutral prompt, the one used for answering later, and the
selected parent's response. Each keeps its own stream, so the state that the fit pushes away from
is really the other parent's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rpam_lite.errors import RpamError
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import (
    PARENTS,
    CalibrationSet,
    Targets,
    save_layer,
    save_questions,
    save_targets,
)

QUESTIONS_A_BATCH = 16


class Labelled(Protocol):
    """What the capture needs of a labelled question."""

    @property
    def label(self) -> str: ...
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def response_ids(self) -> tuple[int, ...]: ...


def choose_questions(questions: Sequence[Any], per_class: int, seed: int) -> list[Any]:
    """Up to `per_class` questions of each label, drawn with `seed`, in their first order."""
    chosen: set[int] = set()
    for label in PARENTS:
        own = [i for i, q in enumerate(questions) if q.label == label]
        chosen.update(random.Random(f"{seed}-{label}").sample(own, min(per_class, len(own))))
    return [questions[i] for i in sorted(chosen)]


def calibration_set(questions: Sequence[Labelled], settings: Capture) -> CalibrationSet:
    """Token ids and kept positions of the chosen questions."""
    return CalibrationSet(
        token_ids=[torch.tensor(q.prompt_ids + q.response_ids) for q in questions],
        prompt_lengths=[len(q.prompt_ids) for q in questions],
        is_long=torch.tensor([q.label == "long" for q in questions]),
        positions=[kept_positions(len(q.prompt_ids), len(q.response_ids), settings) for q in questions],
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
        kept[prompt : prompt + length] = True
    if settings.skip_first_token:
        kept[0] = False
    if not kept.any():
        raise RpamError(f"`capture.positions` {settings.positions!r} keeps no position; add 'prompt' or 'response'.")
    return kept.nonzero().flatten()


def capture(
    parents: dict[str, Path],
    questions: CalibrationSet,
    top_k: int,
    folder: Path,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Write the activation store of both parents into `folder`.

    Args:
        parents: Checkpoint folders of "long" and "short".
        questions: The calibration set.
        top_k: Next-token log-probabilities kept a position.
        folder: Where the files go, each whole or absent.
        on_batch: Called after each batch of each parent.
    """
    save_questions(questions, folder)
    targets: list[Targets | None] = [None] * len(questions)
    for parent in PARENTS:
        model = load_model(parents[parent])
        states = _run(model, questions, on_batch)
        layers: list[list[torch.Tensor]] = [[] for _ in range(model.config.num_hidden_layers)]
        for q, (by_layer, last_hidden) in enumerate(states):
            for layer, hidden in enumerate(by_layer):
                layers[layer].append(hidden.bfloat16())
            if bool(questions.is_long[q]) == (parent == "long"):
                logits = model.get_output_embeddings()(last_hidden[questions.target_positions(q)])
                targets[q] = top_k_targets(logits, top_k)
        for layer, tensors in enumerate(layers):
            save_layer(tensors, folder, parent, layer)
    found = [t for t in targets if t is not None]
    save_targets(Targets(*(torch.cat([getattr(t, f) for t in found]) for f in ("ids", "logprobs", "tail"))), folder)


def load_model(folder: Path) -> PreTrainedModel:
    """A parent in fp32 on the CPU, ready to run."""
    # Ours shows progress; this one would write over it.
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def top_k_targets(logits: torch.Tensor, k: int) -> Targets:
    """Top-k log-probabilities and the rest's mass of logits [positions, vocabulary]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    return Targets(top.indices, top.values, (1 - top.values.exp().sum(-1)).clamp_min(0))


@torch.no_grad()
def _run(
    model: PreTrainedModel, questions: CalibrationSet, on_batch: Callable[[], None]
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """For each question: hidden states after every layer at its kept positions, and the final ones.

    Batches are padded on the right: with causal attention no real position sees a pad.
    """
    for start in range(0, len(questions), QUESTIONS_A_BATCH):
        batch = range(start, min(start + QUESTIONS_A_BATCH, len(questions)))
        ids = torch.nn.utils.rnn.pad_sequence([questions.token_ids[q] for q in batch], batch_first=True)
        with layer_outputs(model) as outputs:
            final = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        for row, q in enumerate(batch):
            for layer, states in enumerate(outputs):
                check_finite(states[row, : len(questions.token_ids[q])], layer, q)
            yield [states[row, questions.positions[q]] for states in outputs], final[row]
        on_batch()


def check_finite(states: torch.Tensor, layer: int, question: int) -> None:
    """Refuse inf and NaN at once, naming where they appeared."""
    if not torch.isfinite(states).all():
        raise RpamError(
            f"Hidden states of decoder layer {layer} hold inf or NaN on calibration question {question}; "
            "the checkpoint is damaged, or its weights overflow."
        )


@contextmanager
def layer_outputs(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collect the output of every decoder layer during the forward passes of a `with` block.

    Taken from the layers themselves: the last entry of `output_hidden_states` comes after the
    final norm.
    """
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in model.get_decoder().layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
