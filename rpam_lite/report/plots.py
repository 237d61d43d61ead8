"""The pictures: lambda per layer, the frontier, and who thinks long when."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from rpam_lite.checkpoint.files import whole_file

_LONG, _SHORT, _SCALAR, _MERGE = "#b5442e", "#2e6f9e", "#8a8a8a", "#1d7a4f"
_LAYER = re.compile(r"layers\.(\d+)\.?(.*)")


def plot_coefficients(values: dict[str, float], path: Path) -> None:
    """Lambda over depth, one line a matrix, with embedding, norm and head as points beside."""
    lines: dict[str, list[tuple[int, float]]] = {}
    others: dict[str, float] = {}
    for group, value in values.items():
        match = _LAYER.fullmatch(group)
        if match is None:
            others[group] = value
        else:
            lines.setdefault(match[2] or "decoder layer", []).append((int(match[1]), value))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name.split(".")[-1], color=None)
    depth = max((layer for points in lines.values() for layer, _ in points), default=0)
    for i, (name, value) in enumerate(others.items()):
        axes.plot(depth + 1 + i, value, marker="s", linestyle="none", label=name)
    axes.axhline(0.5, color=_SCALAR, linewidth=0.8, linestyle=":")
    axes.set(xlabel="decoder layer", ylabel="lambda (weight of the Long parent)")
    axes.set_ylim(min(-0.05, *values.values()) - 0.05, max(1.05, *values.values()) + 0.05)
    axes.set_xticks(range(depth + 1))
    axes.legend(fontsize=8, ncols=2)
    _save(figure, path)


def plot_dial(told: dict[str, Any], path: Path) -> None:
    """The family of merges on calibration questions: accuracy against tokens, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    members = sorted(told["members"], key=lambda row: row["tokens"])
    tokens, accuracy = [row["tokens"] for row in members], [100 * row["accuracy"] for row in members]
    spread = [[abs(100 * row["intervals"]["pass@1"][i] - 100 * row["accuracy"]) for row in members] for i in (0, 1)]
    axes.errorbar(tokens, accuracy, yerr=spread, color=_MERGE, marker="o", capsize=3, label="merges, by dial")
    for row in members:
        place = (row["tokens"], 100 * row["accuracy"])
        axes.annotate(row["label"], place, textcoords="offset points", xytext=(6, -10), fontsize=8)
    taken = told["members"][told["index"]]
    axes.plot(
        taken["tokens"], 100 * taken["accuracy"], "o", markersize=13, fillstyle="none", color=_MERGE, label="taken"
    )
    axes.plot(told["long"]["tokens"], 100 * told["long"]["accuracy"], "s", color=_LONG, label="Long")
    axes.set(
        xlabel="mean generated tokens",
        ylabel="accuracy, %",
        title=f"{told['questions']} calibration questions that no fit saw"
        if told.get("measured", True)
        else f"By the parents' answers to {told['questions']} calibration questions",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_frontier(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: accuracy against mean tokens, the scalar curve drawn. Right: share of long answers by level."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    curve = sorted((r for r in rows if r["weight"] is not None), key=lambda r: r["weight"])
    _draw_accuracy(left, curve, [r for r in rows if r["kind"] != "scalar"])
    merge = next(r for r in rows if r["kind"] == "merge")
    nearest = min(curve, key=lambda r: abs(r["tokens"] - merge["tokens"]))
    _draw_levels(right, [(curve[-1], "-"), (curve[0], "-"), (merge, "-"), (nearest, ":")])
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)  # hides no merge
    _save(figure, path)


def _draw_accuracy(axes: Axes, curve: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    coin, scalars = "a coin tossed between both parents", "scalar interpolation"
    axes.plot(*_places([curve[0], curve[-1]]), color=_SCALAR, linestyle="--", linewidth=0.8, label=coin)
    axes.plot(*_places(curve), color=_SCALAR, marker=".", label=scalars)
    for row in curve[1:-1]:
        below: dict[str, Any] = {"textcoords": "offset points", "xytext": (5, -10)}
        place = (row["tokens"], 100 * row["accuracy"])
        axes.annotate(f"{row['weight']:g}", place, **below, fontsize=7, color=_SCALAR)
    merge_markers = itertools.cycle("o^vD*P")
    for row in others:
        marker = "s" if row["kind"] == "parent" else next(merge_markers)
        fill = "none" if row["kind"] == "member" else None
        look: dict[str, Any] = {"marker": marker, "markersize": 8, "markerfacecolor": fill, "linestyle": "none"}
        axes.plot(*_places([row]), **look, color=_color(row), alpha=0.85, label=row["name"])
    axes.set(xlabel="mean generated tokens", ylabel="accuracy, %", title="Accuracy against tokens")


def _draw_levels(axes: Axes, rows: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    for row, style in rows:
        levels = {int(level): 100 * summary["long"] for level, summary in row["levels"].items()}
        axes.plot(list(levels), list(levels.values()), style, marker="o", color=_color(row), label=row["name"])
    axes.set(xlabel="difficulty level", ylabel="long answers, %", title="Who thinks long, and when", ylim=(-3, 103))


def _places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Tokens and percent right of every row."""
    return [row["tokens"] for row in rows], [100 * row["accuracy"] for row in rows]


def _color(row: Mapping[str, Any]) -> str:
    if row["kind"] == "parent":
        return _LONG if row["weight"] == 1.0 else _SHORT
    return _SCALAR if row["kind"] == "scalar" else _MERGE


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as part:
        # No date inside: the same run makes the same bytes.
        figure.savefig(part, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
