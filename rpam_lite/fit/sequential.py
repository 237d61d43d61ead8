"""Fit lambda layer by layer on the merged stream, in closed form; every layer is loaded once.

For layer l the merged output z(lambda) should meet the selected parent's state z_pos. With the
Jacobian J = dz/dlambda (forward mode, one direction a lambda) a damped Gauss-Newton step is

    (J'J + mu I) step = -J'(z - z_pos)

with every position weighted as in the alignment term. Lambda is kept in its box; then the layer is
frozen and the merged stream goes on through it, as in ProDistill (arXiv 2502.12706).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rpam_lite.checkpoint.arithmetic import broadcast
from rpam_lite.checkpoint.files import save_state
from rpam_lite.fit.batches import LayerTargets, MicroBatch
from rpam_lite.fit.objective import inverse
from rpam_lite.fit.problem import Problem, Reducer
from rpam_lite.streaming.capture import check_finite, gather_positions
from rpam_lite.streaming.codec import Pair
from rpam_lite.streaming.merged import merged_layer, merged_tensor
from rpam_lite.streaming.store import ActivationStore
from rpam_lite.streaming.stubs import LayerCall

ITERATIONS = 3
DAMPING = 1e-3  # of the mean diagonal of J'J


def fit_sequentially(
    problem: Problem,
    start: torch.Tensor,
    stream: ActivationStore,
    reduce: Reducer,
    state_file: Path | None,
    on_layer: Callable[[str], None] = lambda note: None,
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Closed-form lambdas of all decoder layers; embedding, final norm and head keep their start.

    Args:
        problem: The objective; only its alignment term counts here, `cosine` being taken as `gap`.
        start: First values, float32 [values]. With one a row, a matrix's rows move together; of a field, its base.
        stream: Keeps the merged stream, as layer 0.
        reduce: Sums over processes.
        state_file: Saved after every layer; if it exists, the fit goes on from there. None: not kept.
        on_layer: Called after every layer with a short note.

    Returns:
        The lambdas, and for each layer its gap-normalised error before and after, and the largest
        and smallest eigenvalue of J'J.
    """
    values = start.detach().clone()
    skeleton, grouping = problem.skeleton, problem.grouping

    def lambda_of(name: str) -> torch.Tensor:
        return grouping.of(values, name)

    calls = []
    for b, batch in enumerate(problem.batches):
        embedded = merged_tensor(problem.ends.embedding(batch.ids), lambda_of(skeleton.embedding), problem.dtype)
        first, own_calls = skeleton.calls(embedded)
        stream.put(0, b, first)
        calls.append(own_calls)
    report: list[dict[str, float]] = []
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location="cpu")
        values.copy_(state["values"])
        report = state["report"]
        for b, states in enumerate(state["stream"]):
            stream.put(0, b, states)
        del state
        for _ in report:
            on_layer("")
    for layer, pairs in problem.source.sweep(range(len(report), skeleton.layers)):
        names = problem.names(layer)
        targets = LayerTargets(problem.captured, problem.questions, layer)
        report.append(_fit_layer(problem, layer, pairs, targets, values, stream, calls, reduce))
        tensors = merged_layer(pairs, names, lambda_of, problem.dtype)
        for b, batch in enumerate(problem.batches):
            with torch.no_grad():
                output = skeleton.run_layer(layer, tensors, stream.get(0, b), calls[b][layer])
            check_finite(output, layer, batch.questions)
            stream.put(0, b, output)
        if state_file is not None:
            states = [stream.get(0, b).cpu() for b in range(len(problem.batches))]
            save_state({"values": values, "report": report, "stream": states}, state_file)
        on_layer(f"error {report[-1]['before']:.3f} -> {report[-1]['after']:.3f}")
    stream.drop(0)
    return values, report


def _fit_layer(
    problem: Problem,
    layer: int,
    pairs: dict[str, Pair],
    targets: LayerTargets,
    values: torch.Tensor,
    stream: ActivationStore,
    calls: list[list[LayerCall]],
    reduce: Reducer,
) -> dict[str, float]:
    """Gauss-Newton steps on one layer's own lambdas, written into `values`."""
    grouping, fit = problem.grouping, problem.settings
    groups = list(dict.fromkeys(grouping.group[name] for name in problem.names(layer).values()))
    own = [grouping.level(values, g) for g in groups]
    errors: list[float] = []
    eigenvalues = torch.zeros(1)
    shifts = torch.zeros(len(groups), dtype=values.dtype, device=values.device)
    starts = [piece.clone() for piece in own]
    # Beyond these every lambda of a group stands at the box, and a step back would have no effect.
    least = torch.stack([fit.lower - first.max() for first in starts])
    most = torch.stack([fit.upper - first.min() for first in starts])
    for iteration in range(ITERATIONS + 1):
        last = iteration == ITERATIONS
        sums = torch.zeros(1 + len(groups) + len(groups) ** 2, dtype=values.dtype, device=values.device)
        for b, batch in enumerate(problem.batches):
            states = stream.get(0, b)
            sums += _normal_equations(problem, layer, pairs, groups, values, targets, batch, states, calls[b], not last)
        sums = reduce(sums)
        errors.append(float(sums[0]))
        if last:
            break
        sums = sums.cpu().double()
        matrix, slope = sums[1 + len(groups) :].view(len(groups), len(groups)), sums[1 : 1 + len(groups)]
        eigenvalues = torch.linalg.eigvalsh(matrix)
        damped = matrix + DAMPING * matrix.diagonal().mean().clamp_min(1e-12) * torch.eye(len(groups)).to(matrix)
        shifts = (shifts - torch.linalg.solve(damped, slope).to(shifts)).clamp(least, most)
        for piece, first, shift in zip(own, starts, shifts, strict=True):
            piece.copy_((first + shift).clamp(fit.lower, fit.upper))
    return {
        "layer": float(layer),
        "before": errors[0],
        "after": errors[-1],
        "largest_eigenvalue": float(eigenvalues[-1]),
        "smallest_eigenvalue": float(eigenvalues[0]),
    }


def _normal_equations(
    problem: Problem,
    layer: int,
    pairs: dict[str, Pair],
    groups: list[str],
    values: torch.Tensor,
    targets: LayerTargets,
    batch: MicroBatch,
    states: torch.Tensor,
    calls: list[LayerCall],
    with_jacobian: bool,
) -> torch.Tensor:
    """Of one micro-batch: squared error, J'r [groups] and J'J [groups, groups], flattened into one vector."""
    names, grouping, dtype = problem.names(layer), problem.grouping, problem.dtype
    exact = values.dtype
    mask = batch.mask.to(device=states.device, dtype=exact)
    weight = (batch.shares.to(mask).unsqueeze(-1) * mask * inverse(targets.mean_gap.to(mask))).sqrt()

    def kept(output: torch.Tensor) -> torch.Tensor:
        return gather_positions(output, batch.positions).to(exact) * weight.unsqueeze(-1)

    def run(shift: torch.Tensor) -> torch.Tensor:
        tensors = {}
        for tensor, pair in pairs.items():
            short, delta = pair.decode(exact)
            own = grouping.of(values, names[tensor]) + shift[groups.index(grouping.group[names[tensor]])]
            tensors[tensor] = (short + broadcast(own, short.ndim) * delta).to(dtype)
        return kept(problem.skeleton.run_layer(layer, tensors, states, calls[layer]))

    zero = torch.zeros(len(groups), dtype=exact, device=states.device)
    selected, _ = targets.of(batch, states.device, exact)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        residual = run(zero) - selected * weight.unsqueeze(-1)
        error = residual.square().sum().view(1)
        if not with_jacobian:
            return torch.cat([error, zero, zero.new_zeros(len(groups) ** 2)])
        columns = [
            torch.func.jvp(run, (zero,), (direction,))[1].flatten() for direction in torch.eye(len(groups)).to(zero)
        ]
    jacobian = torch.stack(columns)
    return torch.cat([error, jacobian @ residual.flatten(), (jacobian @ jacobian.T).flatten()])
