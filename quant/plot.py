"""Accuracy against tokens, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError

if TYPE_CHECKING:
    from quant.comparison import Point


FORMATS = (".png", ".svg", ".pdf")


def check_format(path: Path) -> None:
    """Whether a picture can be drawn in the format that its name ends in.

    Raises:
        RpamError: It can't.
    """
    if path.suffix not in FORMATS:
        raise RpamError(f"{path}: pictures are drawn as {', '.join(FORMATS)}; choose one of these endings.")


def plot_points(points: Sequence[Point], path: Path) -> None:
    """One panel a task; bars are 95 % intervals, and the line joins models that no other beats in both.

    Args:
        points: Every model on every task.
        path: PNG, SVG or PDF.

    Raises:
        RpamError: Another format.
    """
    from matplotlib.figure import Figure

    check_format(path)
    tasks = list(dict.fromkeys(point.task for point in points))
    figure = Figure(figsize=(5.2 * len(tasks), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        here = [point for point in points if point.task == task]
        for p in here:
            across = [[p.tokens.value - p.tokens.low], [p.tokens.high - p.tokens.value]]
            up = [[100 * (p.accuracy.value - p.accuracy.low)], [100 * (p.accuracy.high - p.accuracy.value)]]
            axes.errorbar(
                p.tokens.value, 100 * p.accuracy.value, xerr=across, yerr=up, fmt="o", capsize=2, label=p.model
            )
        best = frontier(here)
        axes.plot([p.tokens.value for p in best], [100 * p.accuracy.value for p in best], color="0.6", lw=1, zorder=0)
        axes.set(title=task, xlabel="mean generated tokens", ylabel="pass@1, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with whole_file(path) as part:
        # The format by name: the temporary file ends otherwise. No date: same inputs, same bytes.
        kind = path.suffix.lstrip(".")
        figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in accuracy at fewer or as many tokens, by tokens."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.tokens.value, -p.accuracy.value)):
        if not best or point.accuracy.value > best[-1].accuracy.value:
            best.append(point)
    return best
