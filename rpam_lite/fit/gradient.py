"""The exact gradient of the whole objective, with one decoder layer in memory at a time.

Up: every layer runs on the merged hidden states below it; its input is kept, and the gradient of
its own loss terms with respect to its output is taken at once, while the parents' states are at
hand. Down: each layer runs again from its kept input and hands the summed gradient to lambda and to
the layer below. What is injected at a layer depends on that layer's output only, so the result is
the gradient of full back-propagation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rpam_lite.fit import objective
from rpam_lite.fit.batches import LayerTargets, MicroBatch
from rpam_lite.fit.outputs import output_terms, tokens_read
from rpam_lite.fit.problem import LAYER_TERMS, TERMS, Problem, Reducer, Stores, weighted_terms
from rpam_lite.recipe import Fit
from rpam_lite.streaming.capture import check_finite, gather_positions
from rpam_lite.streaming.merged import AddGradient, LambdaOf, lambda_gradient, merged_layer, merged_tensor
from rpam_lite.streaming.next_token import head_gradient
from rpam_lite.streaming.stubs import LayerCall
from rpam_lite.streaming.weights import LayerPairs


def layer_terms(
    states: torch.Tensor,
    selected: torch.Tensor,
    other: torch.Tensor,
    mean_gap: torch.Tensor,
    batch: MicroBatch,
    fit: Fit,
) -> torch.Tensor:
    """Alignment and contrastive term of one layer, summed over a micro-batch with its shares, [2].

    Args:
        states: Merged hidden states at the kept positions [questions, kept, hidden].
        selected: The selected parent's, same shape.
        other: The other parent's.
        mean_gap: The layer's mean squared gap.
        batch: The micro-batch.
        fit: The recipe's `fit` section.
    """
    mask, shares = batch.mask.to(states), batch.shares.to(states)
    pull = objective.alignment(states, selected, mask, mean_gap.to(states), fit.alignment)
    push = objective.contrastive(states, selected, other, mask, fit.temperature)
    return torch.stack([(shares * pull).sum(), (shares * push).sum()])


def joint_gradient(
    problem: Problem, values: torch.Tensor, stores: Stores, reduce: Reducer
) -> tuple[torch.Tensor, torch.Tensor]:
    """The terms and the gradient of their weighted sum.

    Args:
        problem: The objective.
        values: All lambdas, float32 (or float64) [values], on the problem's device.
        stores: Keep what the way down needs; empty again afterwards.
        reduce: Sums over processes.

    Returns:
        Terms [6] in order of TERMS, and gradient [values], in the type of `values`.

    Raises:
        RpamError: A hidden state is inf or NaN.
    """
    gradient = torch.zeros_like(values)
    grouping = problem.grouping

    def lambda_of(name: str) -> torch.Tensor:
        return grouping.of(values, name)

    def add_gradient(name: str, of_lambda: torch.Tensor) -> None:
        grouping.add_gradient(gradient, values, name, of_lambda)

    calls, terms = _sweep_up(problem, values.dtype, lambda_of, stores)
    terms[LAYER_TERMS:] = _next_token_terms(problem, values.dtype, lambda_of, add_gradient, stores)
    _sweep_down(problem, calls, lambda_of, add_gradient, stores)
    summed = reduce(torch.cat([terms, gradient]))
    return summed[: len(TERMS)], summed[len(TERMS) :]


def _sweep_up(
    problem: Problem, exact: torch.dtype, lambda_of: LambdaOf, stores: Stores
) -> tuple[list[list[LayerCall]], torch.Tensor]:
    """Fill both stores; give every micro-batch's layer calls and the terms."""
    skeleton, layers = problem.skeleton, problem.skeleton.layers
    terms = torch.zeros(len(TERMS), dtype=exact, device=problem.device)
    weights = weighted_terms(problem).to(terms)[:LAYER_TERMS] / layers
    calls = []
    for b, batch in enumerate(problem.batches):
        embedded = merged_tensor(problem.ends.embedding(batch.ids), lambda_of(skeleton.embedding), problem.dtype)
        first, own_calls = skeleton.calls(embedded)
        stores.inputs.put(0, b, first)
        calls.append(own_calls)
    for layer, pairs in problem.source.sweep(range(layers)):
        terms[:LAYER_TERMS] += _layer_up(problem, layer, pairs, calls, lambda_of, stores, weights) / layers
    return calls, terms


def _layer_up(
    problem: Problem,
    layer: int,
    pairs: LayerPairs,
    calls: list[list[LayerCall]],
    lambda_of: LambdaOf,
    stores: Stores,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Run one layer on all micro-batches; give its two terms [2].

    A function of its own, so that one layer's tensors are gone before the next one's are made.
    """
    exact, skeleton = weights.dtype, problem.skeleton
    terms = torch.zeros_like(weights)
    tensors = merged_layer(pairs, problem.names(layer), lambda_of, problem.dtype)
    targets = LayerTargets(problem.captured, problem.questions, layer) if weights.any() else None
    for b, batch in enumerate(problem.batches):
        with torch.no_grad():
            output = skeleton.run_layer(layer, tensors, stores.inputs.get(layer, b), calls[b][layer])
        check_finite(output, layer, batch.questions)
        stores.inputs.put(layer + 1, b, output)
        if targets is not None:
            kept = gather_positions(output, batch.positions).to(exact).requires_grad_()
            selected, other = targets.of(batch, problem.device, exact)
            own = layer_terms(kept, selected, other, targets.mean_gap, batch, problem.settings)
            stores.injected.put(layer, b, torch.autograd.grad((weights * own).sum(), kept)[0].to(problem.dtype))
            terms += own.detach()
    return terms


def _next_token_terms(
    problem: Problem,
    exact: torch.dtype,
    lambda_of: LambdaOf,
    add_gradient: AddGradient,
    stores: Stores,
) -> torch.Tensor:
    """The terms of the outputs [4]; their gradient with respect to the final hidden states starts the way down."""
    layers, settings = problem.skeleton.layers, problem.settings
    weights = weighted_terms(problem).to(problem.device, exact)[LAYER_TERMS:]
    total = torch.zeros_like(weights)
    final = []
    for b, batch in enumerate(problem.batches):
        states = stores.inputs.get(layers, b)
        final.append(states[batch.target_rows, batch.target_columns].cpu())
        stores.upstream.put(0, b, torch.zeros_like(states))
    stores.inputs.drop(layers)
    if not weights.any():
        return total

    def loss(b: int, logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        terms = output_terms(logprobs, entropy, problem.batches[b], settings)
        total.add_(terms.detach())
        return (weights * terms).sum()

    ids = [tokens_read(batch, settings) for batch in problem.batches]
    with_entropy = settings.entropy_weight != 0
    gradients = head_gradient(problem.ends, final, ids, loss, lambda_of, add_gradient, problem.dtype, with_entropy)
    for b, (batch, found) in enumerate(zip(problem.batches, gradients, strict=True)):
        upstream = stores.upstream.get(0, b)
        upstream[batch.target_rows, batch.target_columns] = found.to(upstream)
        stores.upstream.put(0, b, upstream)
    return total


def _sweep_down(
    problem: Problem,
    calls: list[list[LayerCall]],
    lambda_of: LambdaOf,
    add_gradient: AddGradient,
    stores: Stores,
) -> None:
    """Run every layer again, from the last to the first, and add to lambda's gradient."""
    skeleton, layers = problem.skeleton, problem.skeleton.layers
    for layer, pairs in problem.source.sweep(range(layers - 1, -1, -1)):
        _layer_down(problem, layer, pairs, calls, lambda_of, add_gradient, stores)
        stores.inputs.drop(layer)
        stores.injected.drop(layer)
    weight = lambda_of(skeleton.embedding)
    for b, batch in enumerate(problem.batches):
        pair = problem.ends.embedding(batch.ids)
        embedded = merged_tensor(pair, weight, problem.dtype).requires_grad_()
        first, _ = skeleton.calls(embedded)
        (found_,) = torch.autograd.grad(first, embedded, stores.upstream.get(0, b))
        add_gradient(skeleton.embedding, lambda_gradient(pair, found_, weight))
    stores.upstream.drop(0)


def _scatter_positions(kept: torch.Tensor, batch: MicroBatch, like: torch.Tensor) -> torch.Tensor:
    """The reverse of `gather_positions`; padded entries carry zeros."""
    index = batch.positions.to(kept.device).unsqueeze(-1).expand(-1, -1, kept.shape[-1])
    return torch.zeros_like(like).scatter_add(1, index, kept)


def _layer_down(
    problem: Problem,
    layer: int,
    pairs: LayerPairs,
    calls: list[list[LayerCall]],
    lambda_of: LambdaOf,
    add_gradient: AddGradient,
    stores: Stores,
) -> None:
    """Run one layer again and take the gradient through it."""
    names = problem.names(layer)
    with_layer_terms = bool(weighted_terms(problem)[:LAYER_TERMS].any())
    tensors = {t: w.requires_grad_() for t, w in merged_layer(pairs, names, lambda_of, problem.dtype).items()}
    exact = torch.promote_types(problem.dtype, torch.float32)
    totals = {t: torch.zeros_like(w, dtype=exact) for t, w in tensors.items()}
    for t, weight in tensors.items():
        weight.register_post_accumulate_grad_hook(_move_gradient_to(totals[t]))  # type: ignore[no-untyped-call]
    for b, batch in enumerate(problem.batches):
        states = stores.inputs.get(layer, b).requires_grad_()
        upstream = stores.upstream.get(0, b)
        if with_layer_terms:
            upstream = upstream + _scatter_positions(stores.injected.get(layer, b), batch, states)
        output = problem.skeleton.run_layer(layer, tensors, states, calls[b][layer])
        output.backward(upstream)  # type: ignore[no-untyped-call]
        assert states.grad is not None
        stores.upstream.put(0, b, states.grad)
    tensors.clear()
    for t, total in totals.items():
        add_gradient(names[t], lambda_gradient(pairs[t], total, lambda_of(names[t])))


def _move_gradient_to(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Sum a tensor's gradient in fp32 as soon as it is there: no second set of them is ever held."""

    def move(weight: torch.Tensor) -> None:
        total.add_(weight.grad)  # type: ignore[arg-type]
        weight.grad = None

    return move
