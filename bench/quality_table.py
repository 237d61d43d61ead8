"""The figures of bench.quality: every model against the scalar curve, a tossed coin and the threshold policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from quant.adaptivity import measure_adaptivity
from quant.frontier import curve_accuracy, gain_over_coin, gain_over_curve, level_policies, threshold_policies
from quant.measures import by_question
from quant.records import Record
from quant.summary import summarize, summarize_by_level

Measured = dict[str, Any]


def measured_rows(models: Mapping[str, tuple[str, list[Record]]], long_think_tokens: int) -> Measured:
    """Figures of all models of a pair.

    Args:
        models: By name its kind ("curve" in order of lambda, both parents as ends; "method", a merge; or "routing",
            a rule that chooses between both parents) and its records.
        long_think_tokens: Think tokens from which an answer is a long one.
    """
    curve = [records for kind, records in models.values() if kind == "curve"]
    short, long = models["Short"][1], models["Long"][1]
    policy, by_level = threshold_policies(short, long), level_policies(short, long)
    rows = []
    for name, (kind, records) in models.items():
        summary = summarize(records, long_think_tokens)
        adaptivity = measure_adaptivity(by_question(records), by_question(short), by_question(long), long_think_tokens)
        row: Measured = {
            "name": name,
            "kind": kind,
            "accuracy": summary.accuracy,
            "tokens": summary.tokens,
            "unclosed": float(np.mean([r.think_block == "open" for r in records])),
            "long_by_level": [s.long for s in summarize_by_level(records, long_think_tokens).values()],
            **{key: _number(adaptivity[key].value) for key in ("overthink", "underthink")},
        }
        if name not in ("Short", "Long"):
            row["over_coin"] = asdict(gain_over_coin(records, short, long))
        if kind != "curve":
            gain = gain_over_curve(records, curve)
            row["gain"] = asdict(gain)
            limit = curve_accuracy(np.array(policy[0]), np.array(policy[1]), gain.tokens)
            row["policy_accuracy"] = limit
            row["by_level"] = {
                key: _number(curve_accuracy(np.array(by_level.tokens), np.array(getattr(by_level, key)), gain.tokens))
                for key in ("accuracy", "overthinking")
            }
            row["closed"] = gain.gain / (limit - gain.curve_accuracy) if limit > gain.curve_accuracy else None
        rows.append(row)
    return {
        "rows": rows,
        "policy": {"tokens": policy[0], "accuracy": policy[1]},
        "by_level": {"tokens": by_level.tokens, "accuracy": by_level.accuracy},
        "oracle": _oracle(short, long),
    }


def _oracle(short: Sequence[Record], long: Sequence[Record]) -> dict[str, float]:
    """Short's answers where they are right, else Long's: the better parent of each question."""
    answers = by_question(short), by_question(long)
    right = answers[0].correct.mean(1) >= answers[1].correct.mean(1)
    picked = {name: np.where(right, *(getattr(a, name).mean(1) for a in answers)) for name in ("correct", "tokens")}
    return {"accuracy": float(picked["correct"].mean()), "tokens": float(picked["tokens"].mean())}


def table(measured: Measured) -> str:
    """Markdown: every method beside the curve at the same tokens, then the curve itself."""
    lines = [
        "| model | right, % | tokens | curve there, % | over the curve, points (95 %) "
        "| over a tossed coin, points (95 %) | policy there, % | way closed | best levels there, % "
        "| they overthink, % | overthinks, % | underthinks, % | never closed, % |",
        "|---|" + "---:|" * 12,
    ]
    for row in sorted(measured["rows"], key=lambda r: (r["kind"] == "curve", -r.get("gain", {"gain": 0})["gain"])):
        cells = [f"{100 * row['accuracy']:.1f}", f"{row['tokens']:.1f}"]
        coin = _points_with_interval(row["over_coin"]) if "over_coin" in row else ""
        if gain := row.get("gain"):
            closed = "-" if row["closed"] is None else f"{100 * row['closed']:.0f} %"
            cells += [f"{100 * gain['curve_accuracy']:.1f}", _points_with_interval(gain), coin]
            cells += [f"{100 * row['policy_accuracy']:.1f}", closed]
            cells += [_percent(value) for value in row["by_level"].values()]
        else:
            cells += ["", "", coin, "", "", "", ""]
        cells += [_percent(row[key]) for key in ("overthink", "underthink", "unclosed")]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    oracle = measured["oracle"]
    lines.append(
        f"| the better parent of each question | {100 * oracle['accuracy']:.1f} | {oracle['tokens']:.1f} |" + " |" * 10
    )
    return "\n".join(lines)


def _number(value: float) -> float | None:
    """None where it is not defined: JSON has no nan."""
    return None if isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points_with_interval(gain: Mapping[str, float]) -> str:
    return f"{100 * gain['gain']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def write_picture(results: Mapping[str, Mapping[str, Measured]], path: Path) -> None:
    """One panel a pair and way of sampling: accuracy against tokens."""
    panels = [(f"{pair}, {how}", rows) for pair, ways in results.items() for how, rows in ways.items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 5.2), layout="constrained", squeeze=False)
    for plot, (title, measured) in zip(axes[0], panels, strict=True):
        rows = measured["rows"]
        curve = [row for row in rows if row["kind"] == "curve"]
        plot.plot(*_points(curve), color="#8a8a8a", marker=".", label="scalar interpolation")
        policy = measured["policy"]
        plot.plot(policy["tokens"], [100 * a for a in policy["accuracy"]], "k:", linewidth=1, label="threshold policy")
        best = measured["by_level"]
        plot.plot(
            best["tokens"], [100 * a for a in best["accuracy"]], "k--", linewidth=1, label="best choice of levels"
        )
        plot.plot(*_points([curve[0], curve[-1]]), "k-.", linewidth=0.7, label="a coin tossed between the parents")
        ours = [row for row in rows if row["name"].startswith(("price", "budget"))]
        by_fit = [row for row in rows if row["name"].startswith(("dial by fit", "adaptive"))]
        rows_alone = [row for row in rows if row["name"].startswith("rows on")]
        shown = [*ours, *by_fit, *rows_alone, *(row for row in rows if row["name"].startswith("dial"))]
        others = [row for row in rows if row["kind"] == "method" and row not in shown]
        routing = [row for row in rows if row["kind"] == "routing"]
        plot.plot(*_points(others), "x", color="#2e6f9e", label="other methods")
        plot.plot(*_points(routing), "^", color="#9a5b13", label="both models, and a rule between them")
        plot.plot(*_points(rows_alone), ".", color="#7a4f9e", label="decision rows on scalar 0.5")
        plot.plot(*_points(by_fit), "o", color="#1d7a4f", fillstyle="none", label="ours, without rows")
        plot.plot(*_points(ours), "o", color="#1d7a4f", label="ours, with decision rows")
        apart = [row for row in others if row["tokens"] > 0.1 * curve[-1]["tokens"]]  # names at Short would overlap
        for row in [*ours, *apart, *routing]:
            plot.annotate(
                row["name"],
                (row["tokens"], 100 * row["accuracy"]),
                fontsize=6,
                xytext=(-6, 4) if row["kind"] == "routing" else (5, -8),
                ha="right" if row["kind"] == "routing" else "left",
                textcoords="offset points",
            )
        plot.set(title=title, xlabel="mean generated tokens", ylabel="accuracy, %")
        plot.margins(x=0.12)  # room for names
        plot.grid(alpha=0.3)
        plot.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
    return [row["tokens"] for row in rows], [100 * row["accuracy"] for row in rows]
