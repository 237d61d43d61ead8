"""Firm decisions: a row whose choices stand when answers are sampled, and that says nothing within answers.

A decision row (`fit/decision.py`) is fitted for the sign of z. Regularised on a few hundred questions, its z can be
small everywhere, and at a temperature T the merge thinks with a probability of sigmoid(z / T) only: a sampled budget
is then missed, and questions are chosen by chance. gap is nearly a product with the state too (g . h, by ridge
regression), so that kappa r + (kappa - 1) g makes z kappa times as large. A correction c keeps it quiet:

    sum_q (c . h(q) / kappa)^2 / n
        + weight * sum_h' max(0, (gap(h') + (kappa r + (kappa - 1) g + c) . h' - limit(h')) / kappa)^2
        + ridge * E[(c . h' / kappa)^2]

h' are states within answers, where the opening token must stay unlikely: limit is -QUIET, or SLACK above the gap that
it has there by itself. kappa brings the median of |z| to the first of `FIRMNESS` at which nearly every choice stays
what it was, and at which positions that were left out stay below -LOUDEST too (each half of them judged by a row made
with the other).

All arithmetic is in float64. A step solves a system of as many unknowns as there are questions and loud positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from rpam_lite.fit.decision import DecisionStates, Vector, whitening

FIRMNESS = (4.0, 3.0, 2.0, 1.5, 1.0, 0.0)  # with the last z is left as large as it is
QUIET, SLACK, LOUDEST = 6.0, 1.0, 3.0
SAME = 0.98  # of the choices, at least
_GAP_RIDGE, _RIDGE, _WEIGHT, _ROUNDS = 1e-3, 1e-2, 10.0, 30


@dataclass(frozen=True)
class FirmRow:
    """A row and what it does.

    Attributes:
        row: What the opening token's row of the head gains, float64 [hidden].
        firmness: Median of |z| over the questions.
        loudest: Largest gap of the opening token within answers, where it was not above -LOUDEST by itself; None if it
            was everywhere.
    """

    row: Vector
    firmness: float
    loudest: float | None


def firm_row(states: DecisionStates, row: Vector) -> FirmRow:
    """A row that decides as the given one does, as firmly as the places within answers allow.

    Args:
        states: Of the merge.
        row: float64 [hidden], of `fit_price` or `fit_budget`.
    """
    root = whitening(states.elsewhere)
    decisions, elsewhere = (
        scipy.linalg.solve_triangular(root, s.T, lower=True).T for s in (states.decisions, states.elsewhere)
    )
    z = states.gaps + states.decisions @ row
    natural = states.elsewhere_gaps
    judged, every = natural < -LOUDEST, np.ones(len(natural), dtype=bool)
    even = np.arange(len(natural)) % 2 == 0
    gap_row = _ridge(decisions / np.sqrt(len(z)), states.gaps / np.sqrt(len(z)), _GAP_RIDGE)

    def made(scale: float, places: npt.NDArray[np.bool_]) -> Vector:
        wanted = scale * (root.T @ row) + (scale - 1) * gap_row
        room = np.maximum(-QUIET, natural + SLACK) - natural - elsewhere @ wanted
        return np.asarray(wanted + scale * _correction(decisions, elsewhere[places], room[places] / scale))

    def loudest(found: Vector, places: npt.NDArray[np.bool_]) -> float:
        return float((natural + elsewhere @ found)[places & judged].max(initial=-np.inf))

    def told(found: Vector) -> FirmRow:
        firm = scipy.linalg.solve_triangular(root.T, found, lower=False)
        z_now = states.gaps + decisions @ found
        return FirmRow(firm, float(np.median(np.abs(z_now))), loudest(found, every) if judged.any() else None)

    for firmness in FIRMNESS:
        scale = max(1.0, firmness / max(float(np.median(np.abs(z))), 1e-9))
        found = made(scale, every)
        same = ((states.gaps + decisions @ found > 0) == (z > 0)).mean()
        left_out = max(loudest(made(scale, half), ~half) for half in (even, ~even))
        if same >= SAME and (left_out <= -LOUDEST or scale == 1):
            return told(found)
    return told(root.T @ row)


def _correction(decisions: Vector, elsewhere: Vector, room: Vector) -> Vector:
    """c that leaves decisions @ c near 0 and brings elsewhere @ c below room, by Newton's method."""

    def loss(c: Vector) -> float:
        over = np.maximum(0, elsewhere @ c - room)
        return float(((decisions @ c) ** 2).mean() + _WEIGHT * (over**2).sum() + _RIDGE * c @ c)

    def solved(loud: npt.NDArray[np.bool_]) -> Vector:
        rows = np.concatenate([decisions / np.sqrt(len(decisions)), elsewhere[loud] * np.sqrt(_WEIGHT)])
        return _ridge(rows, np.concatenate([np.zeros(len(decisions)), room[loud] * np.sqrt(_WEIGHT)]), _RIDGE)

    c, loud = np.zeros(decisions.shape[1]), np.zeros(len(room), dtype=bool)
    for _ in range(_ROUNDS):
        now = elsewhere @ c > room
        if (now == loud).all():
            break
        loud, step = now, solved(now) - c
        length = min((0.5**halved for halved in range(8)), key=lambda length: loss(c + length * step))
        c = c + length * step
    return c


def _ridge(rows: Vector, aims: Vector, ridge: float) -> Vector:
    """x of the least (rows @ x - aims)^2 + ridge x^2, through the rows: they may be fewer than dimensions."""
    return np.asarray(rows.T @ scipy.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), aims, assume_a="pos"))
