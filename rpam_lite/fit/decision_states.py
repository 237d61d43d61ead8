"""The hidden states that a decision row is fitted on: where answers begin, and within them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rpam_lite.fit.batches import micro_batches
from rpam_lite.fit.decision import DecisionStates, Vector
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import LambdaOf, merged_tensor
from rpam_lite.streaming.next_token import merged_tail
from rpam_lite.streaming.passes import Streamed, states_at
from rpam_lite.streaming.store import StoreName

MOST_ELSEWHERE = 4096  # positions within answers


@torch.no_grad()
def decision_states(
    model: Streamed,
    prompts: Sequence[torch.Tensor],
    answers: CalibrationSet,
    token: int,
    micro_tokens: int,
    kind: StoreName,
    scratch: Path,
) -> DecisionStates:
    """Run the merge over prompts and whole answers.

    Args:
        model: The merge.
        prompts: Token ids of every question to decide on, int64 [length] each.
        answers: Questions with an answer of either parent.
        token: The one that opens Long's answers.
        micro_tokens: Padded tokens of a micro-batch at most.
        kind: Where one layer's states of all of them are kept.
        scratch: A folder for them, used by `disk`.
    """
    ids = [*prompts, *answers.token_ids]
    last = [torch.tensor([len(prompt) - 1]) for prompt in prompts]
    positions = [*last, *_within(answers)]
    batches = micro_batches([len(t) for t in ids], micro_tokens)
    states = torch.cat(states_at(model, ids, positions, batches, kind, scratch))
    decisions, elsewhere = _normed(model, states[: len(prompts)]), _normed(model, states[len(prompts) :])
    seen, gaps = zip(*(_seen(model, states, token, micro_tokens) for states in (decisions, elsewhere)), strict=True)
    return DecisionStates(seen[0], gaps[0], seen[1], gaps[1])


def _within(answers: CalibrationSet) -> list[torch.Tensor]:
    """Positions within every answer, so many of all that there are MOST_ELSEWHERE at most, evenly spread.

    The state that chooses an answer's first token is a decision; all that follow are within the answer.
    """
    positions = [answers.target_positions(q)[1:] for q in range(len(answers))]
    numbers = torch.split(torch.arange(sum(len(p) for p in positions)), [len(p) for p in positions])
    every = max(1, -(-sum(len(p) for p in positions) // MOST_ELSEWHERE))
    return [p[n % every == 0] for p, n in zip(positions, numbers, strict=True)]


def _seen(model: Streamed, normed: torch.Tensor, token: int, micro_tokens: int) -> tuple[Vector, Vector]:
    """States as the head sees them, and the token's gaps there."""
    gaps = [token_gaps(model.ends, some, model.lambda_of, token) for some in torch.split(normed, micro_tokens)]
    return _as_the_head_sees(model, normed), _exact(torch.cat(gaps))


@torch.no_grad()
def token_gaps(ends: Ends, normed: torch.Tensor, lambda_of: LambdaOf, token: int) -> torch.Tensor:
    """Logit of one token less the largest of all others, float32 [positions], on the host.

    Args:
        ends: The model's ends.
        normed: Hidden states after the final norm, float32 [positions, hidden].
        lambda_of: Lambda by tensor name.
        token: Its id.
    """
    own = others = torch.full((len(normed),), -torch.inf, device=ends.device)
    for start, pair in ends.head_chunks():
        head = merged_tensor(pair, lambda_of(ends.skeleton.head), torch.float32)
        logits = ends.skeleton.logits(normed.to(ends.device), head)
        if start <= token < start + len(head):
            own = logits[:, token - start].clone()
            logits[:, token - start] = -torch.inf
        others = torch.maximum(others, logits.amax(-1))
    return (own - others).cpu()


def _normed(model: Streamed, states: torch.Tensor) -> torch.Tensor:
    tail = merged_tail(model.ends, model.lambda_of, torch.float32)
    return model.skeleton.final_norm(states.to(model.skeleton.device).float(), tail)


def _as_the_head_sees(model: Streamed, normed: torch.Tensor) -> Vector:
    """States whose product with a row of the head is that row's logit, the model's own scaling of logits included."""
    return _exact(model.skeleton.logits(normed, torch.eye(normed.shape[-1], device=normed.device, dtype=normed.dtype)))


def _exact(tensor: torch.Tensor) -> Vector:
    return np.asarray(tensor.cpu().double().numpy())  # Apple's GPU has no float64
