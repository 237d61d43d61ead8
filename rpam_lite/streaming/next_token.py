"""Next-token distributions without a whole row of logits: the head some vocabulary rows at a time.

log p(token) = z(token) - logsumexp(z), and the entropy is logsumexp(z) - m, m = sum of p z. All are gathered
over the chunks in one pass; a second pass turns their gradients into those of the hidden states and of
lambda, exactly:

    dloss/dz = dloss/dz(target) + p * (dloss/dlogsumexp + dloss/dm * (1 + z - m))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rpam_lite.streaming.activations import Targets
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import AddGradient, LambdaOf, lambda_gradient, merged_tensor


@torch.no_grad()
def top_k_targets(
    ends: Ends, hidden: Sequence[torch.Tensor], lambda_of: LambdaOf, k: int, dtype: torch.dtype
) -> list[Targets]:
    """Top-k log-probabilities and the mass of all other tokens.

    Args:
        ends: The model's ends.
        hidden: Outputs of the last decoder layer, [positions, hidden] each.
        lambda_of: Lambda by tensor name.
        k: Tokens kept a position.
        dtype: Type of the head's arithmetic, to which logits are rounded; what follows is fp32.

    Returns:
        One for each of `hidden`.
    """
    k = min(k, ends.vocabulary)
    tail = merged_tail(ends, lambda_of, dtype)
    # Kept where `hidden` is: the device holds one micro-batch at a time.
    normed = [ends.skeleton.final_norm(h.to(ends.device, dtype), tail).to(h.device) for h in hidden]
    best = [(torch.empty(len(h), 0), torch.empty(len(h), 0, dtype=torch.int64)) for h in hidden]
    sums = [torch.full((len(h),), -torch.inf) for h in hidden]
    for start, pair in ends.head_chunks():
        head = merged_tensor(pair, lambda_of(ends.skeleton.head), dtype)
        for b, states in enumerate(normed):
            logits = ends.skeleton.logits(states.to(ends.device), head).float()
            sums[b] = torch.logaddexp(sums[b], logits.logsumexp(-1).cpu())
            top = logits.topk(min(k, logits.shape[-1]), dim=-1)
            values = torch.cat([best[b][0], top.values.cpu()], dim=-1)
            ids = torch.cat([best[b][1], top.indices.cpu() + start], dim=-1)
            chosen = values.topk(min(k, values.shape[-1]), dim=-1)
            best[b] = (chosen.values, ids.gather(-1, chosen.indices))
    logprobs = [values - total.unsqueeze(-1) for (values, _), total in zip(best, sums, strict=True)]
    return [
        Targets(ids, found, (1 - found.exp().sum(-1)).clamp_min(0))
        for (_, ids), found in zip(best, logprobs, strict=True)
    ]


def head_gradient(
    ends: Ends,
    hidden: Sequence[torch.Tensor],
    target_ids: Sequence[torch.Tensor],
    loss: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    lambda_of: LambdaOf,
    add_gradient: AddGradient,
    dtype: torch.dtype,
    with_entropy: bool = False,
) -> list[torch.Tensor]:
    """Add the gradient of a loss on next-token distributions to lambda's; give the hidden states'.

    Args:
        ends: The model's ends.
        hidden: Outputs of the last decoder layer, [positions, hidden] each.
        target_ids: Tokens whose log-probabilities the loss reads, int64 [positions, k] each.
        loss: Of (index into `hidden`, log-probabilities [positions, k], entropies [positions]) gives a scalar.
        lambda_of: Lambda by tensor name.
        add_gradient: Adds to lambda's gradient.
        dtype: Type of the head's arithmetic.
        with_entropy: Whether the loss reads the entropies, in nats; they are 0 without.

    Returns:
        dloss/dhidden, one for each of `hidden`, of its device and type.
    """
    skeleton = ends.skeleton
    ids = [t.to(ends.device) for t in target_ids]
    tail = {name: tensor.requires_grad_() for name, tensor in merged_tail(ends, lambda_of, dtype).items()}
    leaves = [h.detach().requires_grad_() for h in hidden]
    with torch.no_grad():
        # Kept where `hidden` is: on the host, the device holds one micro-batch at a time.
        normed = [skeleton.final_norm(h.to(ends.device, dtype), tail).to(h.device) for h in leaves]
        read = _read(ends, normed, ids, lambda_of, dtype, with_entropy)
    upstream = [_of_what_was_read(partial(loss, b), micro, with_entropy) for b, micro in enumerate(read)]
    to_normed = [torch.zeros_like(states, dtype=_exact(dtype)) for states in normed]
    for start, pair in ends.head_chunks():
        weight = lambda_of(skeleton.head)
        head = merged_tensor(pair, weight, dtype).requires_grad_()
        to_head = torch.zeros_like(head, dtype=_exact(dtype))
        for b, states in enumerate(normed):
            leaf = states.to(ends.device).requires_grad_()
            to_leaf, found = _chunk_back(ends, leaf, head, start, ids[b], read[b], upstream[b])
            to_normed[b] += to_leaf.to(states.device)
            to_head += found
            del leaf, to_leaf, found  # before the next ones are made
        del head
        add_gradient(skeleton.head, lambda_gradient(pair, to_head, weight))
        del to_head
    gradients = []
    for h, back in zip(leaves, to_normed, strict=True):
        output = skeleton.final_norm(h.to(ends.device, dtype), tail)
        below, *to_tail = torch.autograd.grad(output, [h, *tail.values()], back.to(output))
        gradients.append(below)
        for (name, pair), part in zip(ends.tail().items(), to_tail, strict=True):
            add_gradient(name, lambda_gradient(pair, part, lambda_of(name)))
    return gradients


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and losses."""
    return torch.promote_types(dtype, torch.float32)


@dataclass
class _Read:
    """What one micro-batch's logits are read for, [positions] each but the targets, gathered over the chunks.

    Attributes:
        targets: Logits of the target tokens, [positions, k].
        sums: logsumexp of all logits.
        means: Their mean by probability, for the entropy; 0 where it is not read.
    """

    targets: torch.Tensor
    sums: torch.Tensor
    means: torch.Tensor


def _read(
    ends: Ends,
    normed: Sequence[torch.Tensor],
    ids: Sequence[torch.Tensor],
    lambda_of: LambdaOf,
    dtype: torch.dtype,
    with_entropy: bool,
) -> list[_Read]:
    """The first pass over the head's chunks, without gradients."""
    made: dict[str, Any] = {"dtype": _exact(dtype), "device": ends.device}
    found = [
        _Read(torch.zeros(t.shape, **made), torch.full((len(t),), -torch.inf, **made), torch.zeros(len(t), **made))
        for t in ids
    ]
    for start, pair in ends.head_chunks():
        head = merged_tensor(pair, lambda_of(ends.skeleton.head), dtype)
        for states, of, own in zip(normed, ids, found, strict=True):
            logits = ends.skeleton.logits(states.to(ends.device), head).to(_exact(dtype))
            before, own.sums = own.sums, torch.logaddexp(own.sums, logits.logsumexp(-1))
            if with_entropy:
                inside = ((logits - own.sums.unsqueeze(-1)).exp_() * logits).sum(-1)
                own.means = own.means * (before - own.sums).exp() + inside
            here, columns = _inside(of, start, len(head))
            own.targets = torch.where(here, logits.gather(-1, columns), own.targets)
    return found


def _of_what_was_read(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], read: _Read, with_entropy: bool
) -> tuple[torch.Tensor, ...]:
    """The loss's gradient by the target logits, by logsumexp, and by the mean where the entropy is read."""
    leaves = [value.detach().requires_grad_() for value in (read.targets, read.sums, read.means)][: 2 + with_entropy]
    target, total, *mean = leaves
    entropy = total - mean[0] if mean else torch.zeros_like(total)
    return torch.autograd.grad(loss(target - total.unsqueeze(-1), entropy), leaves)


def _chunk_back(
    ends: Ends,
    states: torch.Tensor,
    head: torch.Tensor,
    start: int,
    ids: torch.Tensor,
    read: _Read,
    upstream: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The second pass: dloss/dlogits of one micro-batch on one chunk, turned into those of states and head."""
    to_target, to_sum, *to_mean = upstream
    logits = ends.skeleton.logits(states, head)
    here, columns = _inside(ids, start, len(head))
    exact_logits = logits.detach().to(read.sums.dtype)
    back = (exact_logits - read.sums.unsqueeze(-1)).exp_()
    if to_mean:
        slope = (exact_logits - read.means.unsqueeze(-1)).add_(1).mul_(to_mean[0].unsqueeze(-1))
        back.mul_(slope.add_(to_sum.unsqueeze(-1)))
    else:
        back.mul_(to_sum.unsqueeze(-1))
    back.scatter_add_(-1, columns, torch.where(here, to_target, 0))
    of_states, of_head = torch.autograd.grad(logits, [states, head], back.to(logits.dtype))
    return of_states, of_head


def _inside(ids: torch.Tensor, start: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which target tokens are among the chunk's rows, and their columns there (0 for the others)."""
    here = (ids >= start) & (ids < start + rows)
    return here, torch.where(here, ids - start, 0)


def merged_tail(ends: Ends, lambda_of: LambdaOf, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The merged tensors between the last layer and the head, by name."""
    return {name: merged_tensor(pair, lambda_of(name), dtype) for name, pair in ends.tail().items()}
