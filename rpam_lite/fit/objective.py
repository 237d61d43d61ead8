"""The objective, as pure functions of tensors.

Six terms, each one number a question, so that a batch is a weighted sum of its questions and
nothing depends on who else is in it:

- `alignment`: distance of the merged hidden states to the selected parent's, by default divided by
  the mean squared gap between the parents: 0 at the selected parent, 1 at the other;
- `contrastive`: the merged state must resemble the selected parent's more than the other's;
- `kl_to_targets`: KL divergence from the selected parent's next-token distribution on its response;
- `output_contrast`: where the answer begins, the merge's distribution must be nearer to the selected
  parent's than to the other's;
- the negative log-likelihood of the selected parent's answer itself;
- the entropy of the merge's own next-token distributions, which reads neither label nor answer.

After RPAM (arXiv 2601.03506), with a gap-normalised distance and the true negative stream; the entropy is
AdaMerging's (arXiv 2310.02575).
"""

from __future__ import annotations

from typing import Literal

import torch

AlignmentForm = Literal["gap", "mean", "raw", "cosine"]
KlForm = Literal["sequence", "mean", "execution"]


def squared_distance(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over kept positions of ||a - b||^2, a question.

    Args:
        a: Hidden states, float32 [questions, positions, hidden].
        b: The same shape.
        mask: 1.0 at kept positions, 0.0 elsewhere, float32 [questions, positions].

    Returns:
        float32 [questions].
    """
    return ((a - b).square().sum(-1) * mask).sum(-1)


def alignment(
    merged: torch.Tensor,
    selected: torch.Tensor,
    mask: torch.Tensor,
    mean_gap: torch.Tensor,
    form: AlignmentForm = "gap",
) -> torch.Tensor:
    """Distance to the selected parent's hidden states, a question.

    Args:
        merged: Hidden states of the merged model, float32 [questions, positions, hidden].
        selected: Those of the parent that the label selects, same shape.
        mask: float32 [questions, positions].
        mean_gap: Mean over all calibration questions of the squared distance between the two
            parents at this layer, float32 scalar; `gap` reads it.
        form: `gap`, squared distance divided by `mean_gap`: its mean over the calibration set is 0
            at the selected parent and 1 at the other; `mean`, squared distance a value; `raw`, the
            plain sum of squares, as in the RPAM release; `cosine`, 1 - cosine, a position.

    Returns:
        float32 [questions].
    """
    if form == "cosine":
        cosine = torch.nn.functional.cosine_similarity(merged, selected, dim=-1)
        return ((1 - cosine) * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    squares = squared_distance(merged, selected, mask)
    if form == "raw":
        return squares
    if form == "mean":
        return squares / (merged.shape[-1] * mask.sum(-1).clamp_min(1))
    return squares * inverse(mean_gap)


def inverse(mean_gap: torch.Tensor) -> torch.Tensor:
    """1 / mean_gap; 0 where both parents are the same so far, as below frozen layers: there is nothing to align."""
    return torch.where(mean_gap > 0, 1 / mean_gap, 0.0)


def contrastive(
    merged: torch.Tensor,
    selected: torch.Tensor,
    other: torch.Tensor,
    mask: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """-log( e^(c/tau) / (e^(c/tau) + e^(d/tau)) ), a question.

    c and d are the cosines, over all kept positions flattened into one vector, of the merged state
    with the selected parent's and with the other's.

    Returns:
        float32 [questions].
    """
    c = _flat_cosine(merged, selected, mask)
    d = _flat_cosine(merged, other, mask)
    return torch.nn.functional.softplus((d - c) / temperature)


def kl_to_targets(logprobs: torch.Tensor, target_logprobs: torch.Tensor, target_tail: torch.Tensor) -> torch.Tensor:
    """KL(target || merged) a position, the target being top-k log-probabilities and the tail's mass.

    Everything outside the top k counts as one token, so the value is a lower bound of the exact KL
    divergence, and equal to it when k is the vocabulary's size.

    Args:
        logprobs: Of the merged model, at the target's tokens, float32 [positions, k].
        target_logprobs: float32 [positions, k].
        target_tail: Probability outside the top k, float32 [positions].

    Returns:
        float32 [positions].
    """
    head = (target_logprobs.exp() * (target_logprobs - logprobs)).sum(-1)
    # 1 - sum of probabilities, kept away from 0 where rounding would make the logarithm infinite.
    tail = (1 - logprobs.exp().sum(-1)).clamp_min(1e-9)
    return head + target_tail * (target_tail.clamp_min(1e-9).log() - tail.log())


def output_contrast(to_selected: torch.Tensor, to_other: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log( e^(-s/tau) / (e^(-s/tau) + e^(-o/tau)) ), a question.

    Args:
        to_selected: s, KL(selected parent || merged) where the answer begins, float32 [questions].
        to_other: o, the same to the other parent.
        temperature: tau, in nats.

    Returns:
        float32 [questions]; log 2 where the merge is as near to one as to the other.
    """
    return torch.nn.functional.softplus((to_selected - to_other) / temperature)


def position_weights(
    positions: int, form: KlForm, decision_share: float = 0.0, window: int | None = None
) -> torch.Tensor:
    """Weights of one question's target positions, float64 [positions].

    Args:
        positions: How many there are; the first one, the last prompt token, decides between a long and a
            short answer.
        form: `sequence`, 1 each: by the chain rule the sum of the positions' KL divergences is that of
            whole answers, in nats, so that the decision and every step of a chain of thought count by the
            harm they do; `mean`, with sum 1; `execution`, 1 each but for the first one, which is 0.
        decision_share: Of `mean`: share of the first one; the others divide the rest evenly. In a plain mean
            (0) it would count forty times less in a long answer than in a short one.
        window: How many of them count, from the first on; all of them without it.
    """
    counted = min(positions, window or positions)
    weights = torch.zeros(positions, dtype=torch.float64)
    if form in ("sequence", "execution"):
        weights[int(form == "execution") : counted] = 1
    elif decision_share == 0 or counted == 1:
        weights[:counted] = 1 / counted
    else:
        weights[1:counted] = (1 - decision_share) / (counted - 1)
        weights[0] = decision_share
    return weights


def sum_by_question(values: torch.Tensor, question: torch.Tensor, questions: int) -> torch.Tensor:
    """Sum of `values` [positions] over the positions of each question, [questions]."""
    return torch.zeros(questions, dtype=values.dtype, device=values.device).index_add(0, question, values)


def _flat_cosine(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    a = (a * mask.unsqueeze(-1)).flatten(1)
    b = (b * mask.unsqueeze(-1)).flatten(1)
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def ridge(values: torch.Tensor) -> torch.Tensor:
    """Mean squared deviation of lambda from its mean."""
    return (values - values.mean()).square().mean()


def roughness(values: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Mean squared step of lambda from one decoder layer to the next.

    Args:
        values: All lambdas, float32 [values].
        neighbours: Indices of the same part of consecutive layers, int64 [2, pairs].
    """
    if neighbours.shape[1] == 0:
        return values.sum() * 0
    return (values[neighbours[1]] - values[neighbours[0]]).square().mean()
