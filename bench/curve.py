"""Interpolations of a pair: which of the scalar curve are measured, in which order; and those of some tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from quant.records import Record
from quant.summary import summarize
from rpam_lite.fit.coefficients import Coefficients
from rpam_lite.fit.grouping import grouping
from rpam_lite.pipeline.stage import Run
from rpam_lite.streaming.skeleton import Skeleton

Models = dict[str, tuple[str, list[Record]]]  # kind and records by name
# Finely where a sweep of the embedded pair changes phase.
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.54, 0.57, 0.6, 0.63, 0.66, 0.7, 0.75, 0.8, 0.9)
FAR_APART = 0.1  # of accuracy, or of Long's mean tokens


def between_farthest(points: Mapping[float, tuple[float, float]]) -> float | None:
    """The lambda halfway between the two neighbours on the curve that lie farthest apart; None if all are close.

    Args:
        points: By lambda, accuracy and mean tokens as shares of 1 and of Long's; the parents (0 and 1) among them.
    """
    steps = [
        (max(abs(x - y) for x, y in zip(points[a], points[b], strict=True)), round((a + b) / 2, 4))
        for a, b in pairwise(sorted(points))
    ]
    width, weight = max(steps)
    return weight if width > FAR_APART else None


def weight_of(name: str) -> float:
    """Lambda of a model of the curve."""
    return {"Short": 0.0, "Long": 1.0}[name] if name in ("Short", "Long") else float(name.removeprefix("scalar "))


def in_order(models: Models) -> Models:
    """The curve from Short to Long, then the others as they came."""
    return dict(sorted(models.items(), key=lambda item: weight_of(item[0]) if item[1][0] == "curve" else 2.0))


def curve_points(models: Models, long_think_tokens: int) -> dict[float, tuple[float, float]]:
    """Accuracy and mean tokens (as a share of Long's) of the curve by lambda."""
    curve = {name: summarize(records, long_think_tokens) for name, (kind, records) in models.items() if kind == "curve"}
    long = curve["Long"].tokens
    return {weight_of(name): (found.accuracy, found.tokens / long) for name, found in curve.items()}


def partial_scalars(run: Run, weight: float) -> dict[str, Coefficients]:
    """Interpolation of some of the tensors alone: the MLPs, or the later half of the layers; the rest stays Short's."""
    skeleton = Skeleton(run.pair().donor.folder)
    groups = list(grouping(skeleton.tensors(), "block").size)
    late = tuple(f"layers.{i}." for i in range(skeleton.layers // 2, skeleton.layers))
    chosen = {
        f"MLPs alone {weight:g}": [g for g in groups if g.endswith(".mlp")],
        f"later layers alone {weight:g}": [g for g in groups if g.startswith(late)],
    }
    return {
        name: Coefficients(granularity="block", values={g: weight if g in inside else 0.0 for g in groups})
        for name, inside in chosen.items()
    }
