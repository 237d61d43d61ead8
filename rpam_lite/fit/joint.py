"""Fit all lambdas together: Adam or L-BFGS on the exact gradient of the whole calibration set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch

from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError
from rpam_lite.fit import objective
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.problem import TERMS, Problem, Reducer, Stores, weighted_terms

# The fit ends when the best loss of this many steps is not better than that before them by `tolerance`.
PATIENCE = 10


@dataclass(frozen=True)
class Fitted:
    """Result of a joint fit.

    Attributes:
        values: The best lambdas seen, float32 [values].
        curve: One entry a step: every term, the regularizer, the loss, and gradient evaluations so far.
        stopped: Why it ended: "steps" or "converged".
    """

    values: torch.Tensor
    curve: list[dict[str, float]]
    stopped: str


def fit_jointly(
    problem: Problem,
    start: torch.Tensor,
    stores: Stores,
    reduce: Reducer,
    state_file: Path | None,
    on_step: Callable[[str], None] = lambda note: None,
) -> Fitted:
    """Minimise the weighted sum of the terms and the regularizer over lambda in its box.

    Args:
        problem: The objective.
        start: First lambdas, float32 [values].
        stores: For the gradient.
        reduce: Sums over processes.
        state_file: Saved after every step; if it exists, the fit goes on from there. None: not kept.
        on_step: Called after every step with a short note on the loss.

    Raises:
        RpamError: The loss is not finite.
    """
    settings = problem.settings
    values = start.detach().clone().requires_grad_()
    optimizer = _optimizer(values, settings.optimizer, settings.learning_rate)
    neighbours = problem.grouping.neighbours().to(problem.device)
    curve: list[dict[str, float]] = []
    best = start.detach().clone()
    evaluations = 0
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=problem.device)
        values.data.copy_(state["values"])
        best = state["best"]
        optimizer.load_state_dict(state["optimizer"])
        curve, evaluations = state["curve"], state["evaluations"]
        for _ in curve:
            on_step("")
    seen: dict[str, float] = {}

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        terms, gradient = joint_gradient(problem, values.detach(), stores, reduce)
        penalty, of_penalty = _regularizer(values.detach(), settings.ridge, settings.smoothness, neighbours)
        loss = (weighted_terms(problem).to(terms) * terms).sum() + penalty
        if not torch.isfinite(loss):
            raise RpamError(
                f"The fit's loss is {loss.item()} at step {len(curve) + 1}; lower `fit.learning_rate` "
                f"({settings.learning_rate}) in the recipe."
            )
        values.grad = gradient + of_penalty
        if not seen:
            # The first evaluation of a step is that of the values that the step starts from.
            seen.update(dict(zip(TERMS, terms.tolist(), strict=True)))
            seen.update(regularizer=float(penalty), loss=float(loss))
        return float(loss)

    stopped = "steps"
    for step in range(len(curve), settings.steps):
        for group in optimizer.param_groups:
            if settings.optimizer == "adam":
                group["lr"] = settings.learning_rate * (0.55 + 0.45 * cos(pi * step / settings.steps))
        seen.clear()
        before = values.detach().clone()
        optimizer.step(closure)
        values.data.clamp_(settings.lower, settings.upper)
        if not curve or seen["loss"] < min(entry["loss"] for entry in curve):
            best = before
        curve.append(seen | {"evaluations": float(evaluations)})
        if state_file is not None:
            state = {"values": values.detach(), "best": best, "optimizer": optimizer.state_dict(), "curve": curve}
            with whole_file(state_file) as part:
                torch.save(state | {"evaluations": evaluations}, part)
        on_step(f"loss {seen['loss']:.4f}")
        if _converged([entry["loss"] for entry in curve], settings.tolerance):
            stopped = "converged"
            break
    return Fitted(best, curve, stopped)


def _optimizer(values: torch.Tensor, name: str, learning_rate: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam([values], lr=learning_rate)
    return torch.optim.LBFGS([values], lr=1, max_iter=1, max_eval=5, history_size=20, line_search_fn="strong_wolfe")


def _regularizer(
    values: torch.Tensor, ridge: float, smoothness: float, neighbours: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The penalty on lambda itself, and its gradient."""
    leaf = values.clone().requires_grad_()
    penalty = ridge * objective.ridge(leaf) + smoothness * objective.roughness(leaf, neighbours)
    (gradient,) = torch.autograd.grad(penalty, leaf)
    return penalty.detach(), gradient


def _converged(losses: list[float], tolerance: float) -> bool:
    """Whether the last steps brought next to nothing."""
    if tolerance == 0 or len(losses) <= PATIENCE:
        return False
    before = min(losses[:-PATIENCE])
    return before - min(losses[-PATIENCE:]) < tolerance * abs(before)


def hessian_eigenvalues(problem: Problem, values: torch.Tensor, stores: Stores, reduce: Reducer) -> list[float]:
    """Eigenvalues of the loss's Hessian at `values`, ascending, by differences of the exact gradient.

    Costs two gradients a lambda. Small ones belong to directions that the calibration set says
    little about.
    """
    step = 1e-2
    rows = []
    for i in range(len(values)):
        shift = torch.zeros_like(values)
        shift[i] = step
        above, below = (joint_gradient(problem, values + sign * shift, stores, reduce)[1] for sign in (1, -1))
        rows.append((above - below) / (2 * step))
    hessian = torch.stack(rows).double().cpu()
    return [float(v) for v in torch.linalg.eigvalsh((hessian + hessian.T) / 2)]
