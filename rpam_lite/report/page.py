"""report.md and the closing table, from evaluation.json, fit.json and coefficients.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import read_json, write_text
from rpam_lite.recipe import OURS, Recipe
from rpam_lite.report.plots import plot_frontier

# What a reader is told of each measure of `quant.adaptivity`.
_ADAPTIVITY = {
    "length_ratio": "tokens, of Long's",
    "correct_length_ratio": "tokens of right answers, of Long's",
    "index": "place between Short (0) and Long (1), on log tokens",
    "index_spearman": "rank correlation of that place with difficulty",
    "index_slope": "its slope a level of difficulty",
    "overthink": "long answers where Short is right",
    "underthink": "short and wrong answers where Long is right",
    "auroc": 'AUROC of its tokens for "only Long is right"',
}


def write_report(recipe: Recipe, run_folder: Path, folder: Path) -> None:
    """Write report.md with its pictures into `folder`."""
    evaluation = read_json(run_folder / "eval" / "evaluation.json", "the evaluation")
    rows = evaluation["rows"]
    plot_frontier(rows, folder / "frontier.png")
    fitted = ""
    if recipe.merge.method == OURS:
        coefficients = read_json(run_folder / "fit" / "coefficients.json", "the coefficients file")
        log = read_json(run_folder / "fit" / "fit.json", "the fit's log")
        (folder / "coefficients.png").write_bytes((run_folder / "fit" / "coefficients.png").read_bytes())
        fitted = fit_sections(recipe, coefficients, log)
    compared = read_json(run_folder / "divergence" / "divergence.json", "the divergences")["files"]
    write_text(folder / "report.md", page(recipe, evaluation) + divergence_section(compared) + fitted)


def closing(run_folder: Path) -> str:
    """What `make merge` ends with: the closing table, long answers by level, and the verdicts."""
    rows = read_json(run_folder / "eval" / "evaluation.json", "the evaluation")["rows"]
    log = run_folder / "fit" / "fit.json"
    warning = read_json(log, "the fit's log")["warning"] if log.exists() else None
    told = [row for row in rows if row["kind"] != "scalar" or row["weight"] == 0.5]
    long_answers = level_table(told, "long", _percent)
    return f"\n{closing_table(rows)}\n\nLong answers:\n\n{long_answers}\n\n" + "\n".join(
        [*verdicts(rows), *([f"WARNING from the fit: {warning}."] if warning else []), ""]
    )


def closing_table(rows: list[dict[str, Any]]) -> str:
    """Accuracy, tokens, truncation and long share of every row, as a Markdown table."""
    lines = [
        "| model | accuracy | 95 % interval | mean tokens | 95 % interval | truncated | long answers |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        _, low, high = r["intervals"]["pass@1"]
        _, few, many = r["intervals"]["tokens"]
        lines.append(
            f"| {r['name']} | {_percent(r['accuracy'])} | {100 * low:.1f} to {100 * high:.1f} | {r['tokens']:.1f} "
            f"| {few:.1f} to {many:.1f} | {_percent(r['truncated'])} | {_percent(r['long'])} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence a merged file: where it stands against the scalar curve at equal tokens."""
    sentences = []
    for row in rows:
        if gain := row.get("over_curve"):
            sentences.append(
                f"{row['name']}: {_percent(gain['accuracy'])} at {gain['tokens']:.1f} tokens; the scalar curve has "
                f"{_percent(gain['curve_accuracy'])} there: {100 * gain['gain']:+.1f} points "
                f"(95 % interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})."
            )
    return sentences


def block_table(rows: list[dict[str, Any]]) -> str:
    """Share and mean tokens of answers without a think block, with a closed one, with one that never closes.

    An answer that never closes its block is not a short one: the share of closed blocks alone says
    nothing about adaptivity.
    """
    lines = ["| model | no block | tokens | closed | tokens | never closed | tokens |", "|---|" + "---:|" * 6]
    for row in rows:
        cells = []
        for block in row["blocks"].values():
            tokens = "-" if block["tokens"] is None else f"{block['tokens']:.1f}"
            cells += [_percent(block["share"]), tokens]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptivity_table(rows: list[dict[str, Any]]) -> str:
    """Measures of adaptivity of every merged file, with their 95 % intervals, as a Markdown table."""
    merged = [row for row in rows if row.get("adaptivity")]
    lines = ["| measure | " + " | ".join(row["name"] for row in merged) + " |", "|---|" + "---:|" * len(merged)]
    for measure, meaning in _ADAPTIVITY.items():
        found = [row["adaptivity"][measure] for row in merged]
        cells = ["-" if i is None else f"{i[0]:.2f} ({i[1]:.2f} to {i[2]:.2f})" for i in found]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def level_table(rows: list[dict[str, Any]], field: str, show: Callable[[float], str]) -> str:
    """One field by difficulty level, as a Markdown table."""
    levels = list(rows[0]["levels"])
    lines = ["| model | " + " | ".join(f"level {level}" for level in levels) + " |"]
    lines.append("|---|" + "---:|" * len(levels))
    for row in rows:
        lines.append(f"| {row['name']} | " + " | ".join(show(row["levels"][level][field]) for level in levels) + " |")
    return "\n".join(lines)


def page(recipe: Recipe, evaluation: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = evaluation["rows"]
    count = evaluation["questions"]
    return f"""# {recipe.name}: what the merge does

Method: {recipe.merge.method}{_options(recipe)}.

Greedy answers to {count} held-out questions in llama.cpp. A long answer has at least
{recipe.eval.long_think_tokens} tokens inside its think block; a truncated one was cut off after
{recipe.eval.max_tokens} tokens and counts as wrong.

{closing_table(rows)}

Against plain interpolation with one number, at equal tokens (paired bootstrap over questions):

{chr(10).join(f"- {sentence}" for sentence in verdicts(rows))}

![Accuracy against tokens, and share of long answers by level](frontier.png)

## Adaptivity

How length follows what a question needs, with 95 % intervals (bootstrap over questions).

{adaptivity_table(rows)}

## By level

Accuracy:

{level_table(rows, "accuracy", _percent)}

Mean generated tokens:

{level_table(rows, "tokens", lambda v: f"{v:.1f}")}

Truncated answers:

{level_table(rows, "truncated", _percent)}

Long answers:

{level_table(rows, "long", _percent)}

## By think block

{block_table(rows)}
"""


def divergence_section(files: dict[str, dict[str, float]]) -> str:
    """How far each quantized file is from the unquantized one, as Markdown."""
    rows = "\n".join(
        f"| {name} | {d['mean']:.2g} ± {d['error']:.1g} | {d['median']:.2g} | {d['p99']:.2g} "
        f"| {_percent(d['same_top'])} |"
        for name, d in files.items()
    )
    return f"""
## Quantization

KL divergence to the unquantized file in nats a token, on the calibration traces' answers.

| type | mean | median | 99th percentile | same top token |
|---|---:|---:|---:|---:|
{rows}
"""


def fit_sections(recipe: Recipe, coefficients: dict[str, Any], log: dict[str, Any]) -> str:
    """Coefficients and the course of the fit, as Markdown."""
    curve = log["steps"]
    warning = f"\n**Warning:** {log['warning']}.\n" if log["warning"] else ""
    values = "\n".join(f"| {group} | {_mean(value):.3f} |" for group, value in coefficients["values"].items())
    terms = list(curve[0])
    losses = "\n".join(
        f"| {i} | " + " | ".join(f"{step[term]:.4f}" for term in terms) + " |" for i, step in enumerate(curve, 1)
    )
    settings = json.dumps(recipe.fit.model_dump(mode="json"), indent=2)
    return f"""
## Coefficients

Lambda weights the Long parent: W = S + lambda * (L - S). With one lambda a row or a weight, the mean is shown.

![Lambda per layer](coefficients.png)

| group | lambda |
|---|---:|
{values}

## Fit
{warning}
| step | {" | ".join(terms)} |
|---|{"---:|" * len(terms)}
{losses}

```json
{settings}
```
"""


def _options(recipe: Recipe) -> str:
    """The options of a method beside ours."""
    if not recipe.merge.options:
        return ""
    return " with " + ", ".join(f"{name} {value:g}" for name, value in recipe.merge.options.items())


def _mean(value: float | list[float]) -> float:
    return sum(value) / len(value) if isinstance(value, list) else value


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
