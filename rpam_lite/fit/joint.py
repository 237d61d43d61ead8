"""Fit all lambdas together: Adam or L-BFGS on the exact gradient of the whole calibration set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from rpam_lite.checkpoint.files import save_state
from rpam_lite.errors import RpamError
from rpam_lite.fit import objective
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.grouping import Grouping
from rpam_lite.fit.problem import TERMS, Problem, Reducer, Stores, weighted_terms
from rpam_lite.recipe import Fit
from rpam_lite.streaming.plan import LBFGS_PAIRS

# The fit ends when the best loss of this many steps is not better than that before them by `tolerance`.
PATIENCE = 10
# Of lambdas and the step's number: the curve's entry and the gradient.
Evaluate = Callable[[torch.Tensor, int], tuple[dict[str, float], torch.Tensor]]
# Directions that the first gradient finds flatter than this share of the steepest are scaled alike.
FLATTEST = 3e-3


@dataclass(frozen=True)
class Fitted:
    """Result of a joint fit.

    Attributes:
        values: The best lambdas seen, float32 [values].
        curve: One entry a step, which is one gradient: every term, the regularizer and the loss.
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
    minimise = {"adam": _adam, "lbfgs": _lbfgs}[problem.settings.optimizer]
    box = tuple(bound.to(start) for bound in problem.grouping.bounds())
    return minimise(problem.settings, start, box, partial(_evaluate, problem, stores, reduce), state_file, on_step)


def _adam(
    settings: Fit,
    start: torch.Tensor,
    box: tuple[torch.Tensor, ...],
    evaluate: Evaluate,
    state_file: Path | None,
    on_step: Callable[[str], None],
) -> Fitted:
    values = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([values], lr=settings.learning_rate)
    curve: list[dict[str, float]] = []
    best = start.detach().clone()
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=start.device)
        values.data.copy_(state["values"])
        best, curve = state["best"], state["curve"]
        optimizer.load_state_dict(state["optimizer"])
        for _ in curve:
            on_step("")
    while len(curve) < settings.steps and not _converged(curve, settings.tolerance):
        step = len(curve)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (0.55 + 0.45 * cos(pi * step / settings.steps))
        before = values.detach().clone()
        seen, values.grad = evaluate(before, step)
        optimizer.step()
        values.data.clamp_(*box)
        if not curve or seen["loss"] < min(entry["loss"] for entry in curve):
            best = before
        curve.append(seen)
        if state_file is not None:
            state = {"values": values.detach(), "best": best, "optimizer": optimizer.state_dict(), "curve": curve}
            save_state(state, state_file)
        on_step(f"loss {seen['loss']:.4f}")
    return Fitted(best, curve, "converged" if _converged(curve, settings.tolerance) else "steps")


def _lbfgs(
    settings: Fit,
    start: torch.Tensor,
    box: tuple[torch.Tensor, ...],
    evaluate: Evaluate,
    state_file: Path | None,
    on_step: Callable[[str], None],
) -> Fitted:
    """L-BFGS-B (Byrd et al. 1995): what it asks depends on the answers alone, so that their list resumes it.

    It works on lambda times the root of the first gradient's size: the loss is forty times steeper in the
    embedding's lambda than in a layer's, and without this the layers hardly move.
    """
    curve: list[dict[str, float]] = []
    asked: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    kept = 0
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=start.device)
        curve, gradients = state["curve"], state["gradients"]
        kept = len(curve)

    def loss_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        step = len(asked)
        if step == settings.steps:
            raise StopIteration  # SciPy looks at its own limit between line searches only
        asked.append(torch.from_numpy(point).to(start))
        if step >= kept:
            seen, gradient = evaluate(asked[-1], step)
            curve.append(seen)
            gradients.append(gradient)
            if state_file is not None:
                save_state({"curve": curve, "gradients": gradients}, state_file)
        on_step(f"loss {curve[step]['loss']:.4f}")
        return curve[step]["loss"], gradients[step].cpu().double().numpy()

    def scaled(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # The first point was asked to find the scale.
        loss, gradient = at_first if np.array_equal(point, first * scale) else loss_and_gradient(point / scale)
        return loss, gradient / scale

    lower, upper = (bound.cpu().double().numpy() for bound in box)
    first = start.cpu().double().numpy().clip(lower, upper)
    stopped = "converged"
    try:
        at_first = loss_and_gradient(first)
        sizes = np.abs(at_first[1])
        largest = sizes.max() or 1.0
        scale = np.sqrt(np.clip(sizes / largest, FLATTEST, 1))
        bounds = list(zip(lower * scale, upper * scale, strict=True))
        options = {"maxcor": LBFGS_PAIRS, "ftol": settings.tolerance, "gtol": 0.0}
        minimize(scaled, first * scale, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    except StopIteration:
        stopped = "steps"
    best = min(range(len(asked)), key=lambda i: curve[i]["loss"])
    return Fitted(asked[best], curve, stopped)


def _evaluate(
    problem: Problem, stores: Stores, reduce: Reducer, values: torch.Tensor, step: int
) -> tuple[dict[str, float], torch.Tensor]:
    """One entry of the curve, and the gradient of its loss [values]."""
    settings = problem.settings
    terms, gradient = joint_gradient(problem, values, stores, reduce)
    penalty, of_penalty = _regularizer(values, problem.grouping, settings)
    loss = (weighted_terms(problem).to(terms) * terms).sum() + penalty
    if not torch.isfinite(loss):
        raise RpamError(
            f"The fit's loss is {loss.item()} at step {step + 1}; choose another `fit.start`, or "
            f"narrow `fit.lower` ({settings.lower:g}) and `fit.upper` ({settings.upper:g}) in the recipe."
        )
    entry = dict(zip(TERMS, terms.tolist(), strict=True))
    return entry | {"regularizer": float(penalty), "loss": float(loss)}, gradient + of_penalty


def _regularizer(values: torch.Tensor, grouping: Grouping, settings: Fit) -> tuple[torch.Tensor, torch.Tensor]:
    """The penalty on lambda itself, and its gradient."""
    leaf = values.clone().requires_grad_()
    roughness = objective.roughness(leaf, grouping.neighbours().to(leaf.device))
    penalty = settings.ridge * grouping.variance(leaf) + settings.smoothness * roughness
    (gradient,) = torch.autograd.grad(penalty, leaf)
    return penalty.detach(), gradient


def _converged(curve: list[dict[str, float]], tolerance: float) -> bool:
    """Whether the last steps brought next to nothing."""
    losses = [entry["loss"] for entry in curve]
    if tolerance == 0 or len(losses) <= PATIENCE:
        return False
    before = min(losses[:-PATIENCE])
    return before - min(losses[-PATIENCE:]) < tolerance * abs(before)


def _gradient_at(problem: Problem, values: torch.Tensor, stores: Stores, reduce: Reducer) -> torch.Tensor:
    """The gradient of the whole loss, with the penalty on lambda itself."""
    _, gradient = joint_gradient(problem, values, stores, reduce)
    return gradient + _regularizer(values, problem.grouping, problem.settings)[1]


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
        above, below = (_gradient_at(problem, values + sign * shift, stores, reduce) for sign in (1, -1))
        rows.append((above - below) / (2 * step))
    hessian = torch.stack(rows).cpu().double()
    return [float(v) for v in torch.linalg.eigvalsh((hessian + hessian.T) / 2)]
