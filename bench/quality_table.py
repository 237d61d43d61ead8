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

from quant.adaptivity import overthink, underthink
from quant.frontier import (
    curve_at,
    gain_over_coin,
    gain_over_curve,
    level_policies,
    rate_over_curve,
    threshold_policies,
)
from quant.measures import Answers, by_question
from quant.records import Record
from quant.statistics import Floats, Interval, interval, paired_difference, ratio
from quant.summary import summarize, summarize_by_level

Measured = dict[str, Any]
QUANTIZED = " Q4_K_M"  # at the end of a model's name: the file that was made of the model before it
_NO_WAY = 1e-3  # as far apart curve and policy must be for a share of the way to mean something


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
    answers = {name: by_question(records) for name, (_, records) in models.items()}
    of_curve = [answers[name] for name, (kind, _) in models.items() if kind == "curve"]
    every = np.ones((1, len(answers["Short"].questions)))
    rows = []
    for name, (kind, records) in models.items():
        summary = summarize(records, long_think_tokens)
        rates = thinking(answers[name], answers["Short"], answers["Long"], long_think_tokens)
        row: Measured = {
            "name": name,
            "kind": kind,
            "accuracy": summary.accuracy,
            "tokens": summary.tokens,
            "unclosed": float(np.mean([r.think_block == "open" for r in records])),
            "long_by_level": [s.long for s in summarize_by_level(records, long_think_tokens).values()],
            **{key: _number(float(ratio(columns, every)[0])) for key, columns in rates.items()},
        }
        if name not in ("Short", "Long"):
            row["over_coin"] = asdict(gain_over_coin(records, short, long))
        if kind != "curve":
            gain = gain_over_curve(records, curve)
            row["gain"] = asdict(gain)
            limit = curve_at(np.array(policy[0]), np.array(policy[1]), gain.tokens)
            row["policy_accuracy"] = limit
            row["by_level"] = {
                key: _number(curve_at(np.array(by_level.tokens), np.array(getattr(by_level, key)), gain.tokens))
                for key in ("accuracy", "overthinking")
            }
            row |= thinking_over_curve(answers[name], of_curve, long_think_tokens)
            way = limit - gain.curve_accuracy
            row["closed"] = gain.gain / way if way > _NO_WAY else None
        if (unquantized := answers.get(name.removesuffix(QUANTIZED))) and name.endswith(QUANTIZED):
            row |= quantized_against(answers[name], unquantized)
        rows.append(row)
    return {
        "rows": rows,
        "policy": {"tokens": policy[0], "accuracy": policy[1]},
        "by_level": {"tokens": by_level.tokens, "accuracy": by_level.accuracy},
        "oracle": _oracle(short, long),
    }


def thinking(model: Answers, short: Answers, long: Answers, long_think_tokens: int) -> dict[str, Floats]:
    """Over- and underthinking by question, as columns [questions, 2] for `statistics.ratio`."""
    return {
        "overthink": overthink(model, short, long_think_tokens),
        "underthink": underthink(model, long, long_think_tokens),
    }


def thinking_over_curve(model: Answers, curve: Sequence[Answers], long_think_tokens: int) -> Measured:
    """Over- and underthinking minus the curve's lowest at the same tokens; the curve's ends are Short and Long."""
    tokens = [a.tokens.mean(1) for a in (model, *curve)]
    rates = [thinking(a, curve[0], curve[-1], long_think_tokens) for a in (model, *curve)]
    return {f"{key}_over_curve": _as_json(rate_over_curve([r[key] for r in rates], tokens)) for key in rates[0]}


def quantized_against(quantized: Answers, unquantized: Answers) -> Measured:
    """What quantization changed: accuracy minus that of the 16-bit file, and tokens over its tokens."""
    tokens = np.stack([a.tokens.mean(1) for a in (quantized, unquantized)], axis=1)
    return {
        "accuracy_over_f16": _as_json(paired_difference(quantized.correct, unquantized.correct)),
        "tokens_over_f16": _as_json(interval(tokens, ratio)),
    }


def _as_json(found: Interval) -> Measured:
    return {key: _number(getattr(found, key)) for key in ("value", "low", "high")}


def _oracle(short: Sequence[Record], long: Sequence[Record]) -> dict[str, float]:
    """Short's answers where they are right, else Long's: the better parent of each question."""
    answers = by_question(short), by_question(long)
    right = answers[0].correct.mean(1) >= answers[1].correct.mean(1)
    picked = {name: np.where(right, *(getattr(a, name).mean(1) for a in answers)) for name in ("correct", "tokens")}
    return {"accuracy": float(picked["correct"].mean()), "tokens": float(picked["tokens"].mean())}


def table(measured: Measured) -> str:
    """Markdown: every method beside the curve at the same tokens, then the curve itself; then how each thinks."""
    lines = [
        "| model | right, % | tokens | curve there, % | over the curve, points (95 %) "
        "| over a tossed coin, points (95 %) | policy there, % | way closed | best levels there, % |",
        "|---|" + "---:|" * 8,
    ]
    rows = sorted(measured["rows"], key=lambda r: (r["kind"] == "curve", -r.get("gain", {"gain": 0})["gain"]))
    for row in rows:
        cells = [f"{100 * row['accuracy']:.1f}", f"{row['tokens']:.1f}"]
        coin = _points_with_interval(row["over_coin"]) if "over_coin" in row else ""
        if gain := row.get("gain"):
            closed = "-" if row["closed"] is None else f"{100 * row['closed']:.0f} %"
            cells += [f"{100 * gain['curve_accuracy']:.1f}", _points_with_interval(gain), coin]
            cells += [f"{100 * row['policy_accuracy']:.1f}", closed, _percent(row["by_level"]["accuracy"])]
        else:
            cells += ["", "", coin, "", "", ""]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    oracle = measured["oracle"]
    lines.append(
        f"| the better parent of each question | {100 * oracle['accuracy']:.1f} | {oracle['tokens']:.1f} |" + " |" * 6
    )
    return "\n".join([*lines, "", *_thinking_table(rows), *_quantized_table(rows)])


def _thinking_table(rows: Sequence[Measured]) -> list[str]:
    lines = [
        "| model | overthinks, % | over the curve's lowest there, points (95 %) | underthinks, % "
        "| over the curve's lowest there, points (95 %) | best levels overthink, % | never closed, % |",
        "|---|" + "---:|" * 6,
    ]
    for row in rows:
        cells = []
        for rate in ("overthink", "underthink"):
            against = row.get(f"{rate}_over_curve")
            cells += [_percent(row[rate]), _points(against) if against else ""]
        cells += [_percent(row["by_level"]["overthinking"]) if "by_level" in row else "", _percent(row["unclosed"])]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return lines


def _quantized_table(rows: Sequence[Measured]) -> list[str]:
    quantized = [row for row in rows if "accuracy_over_f16" in row]
    if not quantized:
        return []
    lines = ["", "| quantized | right minus f16's, points (95 %) | tokens minus f16's, % (95 %) |", "|---|---:|---:|"]
    for row in quantized:
        longer = {key: value - 1 for key, value in row["tokens_over_f16"].items()}
        lines.append(f"| {row['name']} | {_points(row['accuracy_over_f16'])} | {_points(longer)} |")
    return lines


def _number(value: float) -> float | None:
    """None where it is not defined: JSON has no nan."""
    return None if isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points_with_interval(gain: Mapping[str, float]) -> str:
    return _points({"value": gain["gain"], "low": gain["low"], "high": gain["high"]})


def _points(found: Mapping[str, float | None]) -> str:
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def write_picture(results: Mapping[str, Mapping[str, Measured]], path: Path) -> None:
    """One panel a pair and way of sampling: accuracy against tokens."""
    panels = [(f"{pair}, {how}", rows) for pair, ways in results.items() for how, rows in ways.items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 5.2), layout="constrained", squeeze=False)
    for plot, (title, measured) in zip(axes[0], panels, strict=True):
        rows = measured["rows"]
        curve = [row for row in rows if row["kind"] == "curve"]
        plot.plot(*_places(curve), color="#8a8a8a", marker=".", label="scalar interpolation")
        policy = measured["policy"]
        plot.plot(policy["tokens"], [100 * a for a in policy["accuracy"]], "k:", linewidth=1, label="threshold policy")
        best = measured["by_level"]
        plot.plot(
            best["tokens"], [100 * a for a in best["accuracy"]], "k--", linewidth=1, label="best choice of levels"
        )
        plot.plot(*_places([curve[0], curve[-1]]), "k-.", linewidth=0.7, label="a coin tossed between the parents")
        ours = [row for row in rows if row["name"].startswith(("price", "budget", "within"))]
        by_fit = [row for row in rows if row["name"].startswith(("dial by fit", "adaptive"))]
        rows_alone = [row for row in rows if row["name"].startswith("rows on")]
        shown = [*ours, *by_fit, *rows_alone, *(row for row in rows if row["name"].startswith("dial"))]
        others = [row for row in rows if row["kind"] == "method" and row not in shown]
        routing = [row for row in rows if row["kind"] == "routing"]
        plot.plot(*_places(others), "x", color="#2e6f9e", label="other methods")
        plot.plot(*_places(routing), "^", color="#9a5b13", label="both models, and a rule between them")
        plot.plot(*_places(rows_alone), ".", color="#7a4f9e", label="decision rows on one lambda for all")
        plot.plot(*_places(by_fit), "o", color="#1d7a4f", fillstyle="none", label="ours, without rows")
        plot.plot(*_places(ours), "o", color="#1d7a4f", label="ours, with decision rows")
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


def _places(rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
    return [row["tokens"] for row in rows], [100 * row["accuracy"] for row in rows]
