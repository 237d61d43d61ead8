"""How many of a position's next-token log-probabilities the fit's KL divergence needs.

With the k likeliest tokens of the selected parent and the mass of all others as one token, the
divergence comes out too small. By how much, the parents themselves show, both at hand where the
capture ends. The fit's merges lie between them, so that the divergence is measured to distributions
on the way from the selected parent p to the other one q, p^(1-t) q^t up to its sum. The other parent
alone would not do: a few tokens that it thinks impossible make up nearly all of that divergence, and
near the selected parent, where a fit ends, others count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rpam_lite.streaming.activations import PARENTS
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import merged_tensor, one_parent
from rpam_lite.streaming.next_token import merged_tail

# Share of the full-vocabulary divergence that may be lost, at each of these steps of the way.
TOLERANCE = 0.01
WAY = (1.0, 0.5, 0.1)
MOST_TOP_K = 1024
# Positions it is measured on, and how many of them are at work at a time.
SAMPLE, PIECE = 1024, 256


@dataclass(frozen=True)
class TopK:
    """The k that is kept, and what it costs.

    Attributes:
        top_k: Log-probabilities a position.
        kl: Mean KL(selected || other) over the whole vocabulary, in nats a position.
        lost: Share that the top k and the tail's mass miss, of the step of the way where it is largest.
        positions: How many positions it was measured on.
    """

    top_k: int
    kl: float
    lost: float
    positions: int


@torch.no_grad()
def choose_top_k(
    ends: Ends,
    states: Mapping[str, torch.Tensor],
    is_long: torch.Tensor,
    candidates: list[int],
    dtype: torch.dtype,
) -> TopK:
    """The first candidate that loses less than TOLERANCE of the KL divergence, all along the way; else the last.

    Args:
        ends: Their ends.
        states: Outputs of the last decoder layer [positions, hidden] of `long` and of `short`.
        is_long: Whether Long is the selected parent, bool [positions].
        candidates: Numbers of tokens, ascending; none above the vocabulary.
        dtype: Type of the head's arithmetic; logits are taken in fp32.
    """
    exact = torch.zeros(len(WAY), 1, dtype=torch.float64)
    short_of = torch.zeros(len(WAY), len(candidates), dtype=torch.float64)
    at = torch.tensor(candidates) - 1
    for start in range(0, len(is_long), PIECE):
        piece = slice(start, start + PIECE)
        own = {parent: hidden[piece] for parent, hidden in states.items()}
        full, truncated = _kl_by_k(ends, own, is_long[piece], candidates[-1], dtype)
        exact += full.sum(1, keepdim=True)
        short_of += (full.unsqueeze(-1) - truncated[..., at]).sum(1)
    lost = (short_of / exact.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0).amax(0).tolist()
    chosen = next((i for i, share in enumerate(lost) if share < TOLERANCE), len(lost) - 1)
    return TopK(candidates[chosen], float(exact[0]) / len(is_long), lost[chosen], len(is_long))


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 ... below `most`, and `most`."""
    return [*(1 << n for n in range(most.bit_length()) if 1 << n < most), most]


def _kl_by_k(
    ends: Ends, states: Mapping[str, torch.Tensor], is_long: torch.Tensor, most: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL divergence from the selected parent to each step of WAY, at every position.

    One pass over the head, with the running mean, under the selected distribution, of the difference of logits.

    Returns:
        In full [steps, positions], and with the top 1, 2 ... `most` [steps, positions, most]; float64.
    """
    skeleton, long, count = ends.skeleton, is_long.to(ends.device).unsqueeze(1), len(is_long)
    weights = {parent: one_parent(parent, ends.device) for parent in PARENTS}
    normed = {
        parent: skeleton.final_norm(states[parent].to(ends.device, dtype), merged_tail(ends, lambda_of, dtype))
        for parent, lambda_of in weights.items()
    }
    # Logarithms of the sums: of the selected parent, and of every step.
    totals = torch.full((1 + len(WAY), count), -torch.inf, dtype=torch.float64)
    mean = torch.zeros(count, dtype=torch.float64)
    best = torch.empty(2, count, 0)
    for _, pair in ends.head_chunks():
        of_long, of_short = (
            skeleton.logits(normed[parent], merged_tensor(pair, lambda_of(skeleton.head), dtype)).float()
            for parent, lambda_of in weights.items()
        )
        p, q = torch.where(long, of_long, of_short), torch.where(long, of_short, of_long)
        del of_long, of_short
        seen = torch.stack([torch.lerp(p, q, t).logsumexp(-1) for t in (0.0, *WAY)]).cpu().double()
        here = (p.softmax(-1) * (p - q)).sum(-1).cpu().double()
        summed = torch.logaddexp(totals, seen)
        mean = mean * (totals[0] - summed[0]).exp() + here * (seen[0] - summed[0]).exp()
        totals = summed
        top = p.topk(min(most, p.shape[-1]), dim=-1)
        both = torch.cat([best, torch.stack([top.values, q.gather(-1, top.indices)]).cpu()], dim=-1)
        order = both[0].topk(min(most, both.shape[-1]), dim=-1).indices
        best = both.gather(-1, order.expand(2, -1, -1))
    p, q = best.double()
    logp = p - totals[0].unsqueeze(-1)
    logq = torch.stack([torch.lerp(p, q, t) for t in WAY]) - totals[1:].unsqueeze(-1)
    inside = (logp.exp() * (logp - logq)).cumsum(-1)
    # As in the fit's objective: what is left of 1, kept away from 0.
    p_tail, q_tail = ((1 - each.exp().cumsum(-1)).clamp_min(1e-9) for each in (logp, logq))
    way = torch.tensor(WAY, dtype=torch.float64).unsqueeze(1)
    return way * mean - totals[0] + totals[1:], inside + p_tail * (p_tail.log() - q_tail.log())
