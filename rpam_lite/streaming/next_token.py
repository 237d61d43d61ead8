"""Next-token distributions without a whole row of logits: the head some vocabulary rows at a time.

log p(token) = z(token) - logsumexp(z), and the entropy is logsumexp(z) - m, m = sum of p z. All are gathered
over the chunks in one pass; a second pass turns their gradients into those of the hidden states and of
lambda, exactly:

    dloss/dz = dloss/dz(target) + p * (dloss/dlogsumexp + dloss/dm * (1 + z - m))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rpam_lite.streaming.activations import Targets
from rpam_lite.streaming.codec import Pair
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
    exact = torch.promote_types(dtype, torch.float32)
    ids = [t.to(ends.device) for t in target_ids]
    targets = [torch.zeros(t.shape, dtype=exact, device=ends.device) for t in ids]
    sums = [torch.full((len(h),), -torch.inf, dtype=exact, device=ends.device) for h in hidden]
    means = [torch.zeros_like(total) for total in sums]
    tail = {name: tensor.requires_grad_() for name, tensor in merged_tail(ends, lambda_of, dtype).items()}
    leaves = [h.detach().requires_grad_() for h in hidden]
    with torch.no_grad():
        # Kept where `hidden` is: on the host, the device holds one micro-batch at a time.
        normed = [skeleton.final_norm(h.to(ends.device, dtype), tail).to(h.device) for h in leaves]
        for start, pair in ends.head_chunks():
            head = merged_tensor(pair, lambda_of(skeleton.head), dtype)
            for b, states in enumerate(normed):
                logits = skeleton.logits(states.to(ends.device), head).to(exact)
                before, sums[b] = sums[b], torch.logaddexp(sums[b], logits.logsumexp(-1))
                if with_entropy:
                    inside = ((logits - sums[b].unsqueeze(-1)).exp_() * logits).sum(-1)
                    means[b] = means[b] * (before - sums[b]).exp() + inside
                here, columns = _inside(ids[b], start, len(head))
                targets[b] = torch.where(here, logits.gather(-1, columns), targets[b])
    upstream = []
    for b, (target, total, mean) in enumerate(zip(targets, sums, means, strict=True)):
        read = [target.requires_grad_(), total.requires_grad_(), mean.requires_grad_(with_entropy)]
        entropy = total - mean if with_entropy else torch.zeros_like(mean)
        found = loss(b, target - total.unsqueeze(-1), entropy)
        upstream.append(torch.autograd.grad(found, read[: 2 + with_entropy]))
    to_normed = [torch.zeros_like(states, dtype=exact) for states in normed]

    def chunk_back(start: int, pair: Pair) -> None:
        # A function of its own, so that one chunk's tensors are gone before the next one's are made.
        weight = lambda_of(skeleton.head)
        head = merged_tensor(pair, weight, dtype).requires_grad_()
        to_head = torch.zeros_like(head, dtype=exact)
        for b, states in enumerate(normed):
            leaf = states.to(ends.device).requires_grad_()
            logits = skeleton.logits(leaf, head)
            to_target, to_sum, *to_mean = upstream[b]
            here, columns = _inside(ids[b], start, len(head))
            exact_logits = logits.detach().to(exact)
            back = (exact_logits - sums[b].detach().unsqueeze(-1)).exp_()
            if to_mean:
                slope = (exact_logits - means[b].detach().unsqueeze(-1)).add_(1).mul_(to_mean[0].unsqueeze(-1))
                back.mul_(slope.add_(to_sum.unsqueeze(-1)))
            else:
                back.mul_(to_sum.unsqueeze(-1))
            back.scatter_add_(-1, columns, torch.where(here, to_target, 0))
            found = torch.autograd.grad(logits, [leaf, head], back.to(dtype))
            to_normed[b] += found[0].to(states.device)
            to_head += found[1]
            del logits, exact_logits, back, found
        del head
        add_gradient(skeleton.head, lambda_gradient(pair, to_head, weight))

    for start, pair in ends.head_chunks():
        chunk_back(start, pair)
    gradients = []
    for h, back in zip(leaves, to_normed, strict=True):
        output = skeleton.final_norm(h.to(ends.device, dtype), tail)
        below, *to_tail = torch.autograd.grad(output, [h, *tail.values()], back.to(output))
        gradients.append(below)
        for (name, pair), part in zip(ends.tail().items(), to_tail, strict=True):
            add_gradient(name, lambda_gradient(pair, part, lambda_of(name)))
    return gradients


def _inside(ids: torch.Tensor, start: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which target tokens are among the chunk's rows, and their columns there (0 for the others)."""
    here = (ids >= start) & (ids < start + rows)
    return here, torch.where(here, ids - start, 0)


def merged_tail(ends: Ends, lambda_of: LambdaOf, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The merged tensors between the last layer and the head, by name."""
    return {name: merged_tensor(pair, lambda_of(name), dtype) for name, pair in ends.tail().items()}
