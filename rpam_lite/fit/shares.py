"""How much every trace of a family weighs: regrets are points, losses are nats, and this puts them in one unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.problem import Problem, Reducer, Stores, weighted_terms
from rpam_lite.fit.setup import with_batches

# A merge with a decision row mostly thinks, and a chain of thought has more to lose. Chosen among 1, 3 and 10 on
# calibration questions (docs/log.md).
LONG_SIDE = 3.0


def loss_of_the_other_parent(
    problem: Problem, own: Sequence[int], micro_tokens: int, open_stores: Callable[[Problem], Stores], reduce: Reducer
) -> torch.Tensor:
    """What the parent that a trace does not select loses on it, as the mean over all traces of its side.

    A long answer holds many more nats than a short one. Divided by this, each side's loss is 1 where the merge is
    the other parent, so that a regret times it is what always choosing wrong there would cost.

    Args:
        problem: The objective, without questions.
        own: This process's traces.
        micro_tokens: Padded tokens of a micro-batch at most.
        open_stores: Opens what one gradient needs.
        reduce: Sums over processes.

    Returns:
        float32 [traces]: one value for all that select Long, one for the others.
    """
    is_long = problem.questions.is_long
    found = torch.ones(len(is_long))
    for side, other in ((is_long, 0.0), (~is_long, 1.0)):
        if side.any():
            chosen = [q for q in own if side[q]]
            member = with_batches(problem, chosen, side / side.sum(), micro_tokens)
            values = problem.grouping.start_values(other).to(problem.device)
            terms, _ = joint_gradient(member, values, open_stores(member), reduce)
            found[side] = (weighted_terms(problem).to(terms) * terms).sum().item()
    return found


def priced_shares(
    weights: torch.Tensor, is_long: torch.Tensor, long_weight: float, other_loss: torch.Tensor
) -> torch.Tensor:
    """Weight of every trace in the loss at one price, float32 [traces] with sum 1.

    Args:
        weights: Its regret, or 0 where the price does not select it, float32 [traces].
        is_long: Which traces select Long.
        long_weight: Of those that do.
        other_loss: What the other parent loses there, float32 [traces].
    """
    shares = weights * torch.where(is_long, long_weight, 1.0) / other_loss
    return shares / shares.sum()


def answer_shares(weights: torch.Tensor, is_long: torch.Tensor, long_weight: float) -> torch.Tensor:
    """Weight of every trace where both parents' answers are fitted, float32 [traces] with sum 1.

    Args:
        weights: How often its parent is right there, float32 [traces].
        is_long: Which traces are Long's.
        long_weight: Weight of Long's answers together, in units of `LONG_SIDE` times that of Short's.
    """
    shares = torch.zeros_like(weights)
    for side, weight in ((is_long, LONG_SIDE * long_weight), (~is_long, 1.0)):
        if side.any():
            shares[side] = weight * weights[side] / weights[side].sum()
    return shares / shares.sum()
