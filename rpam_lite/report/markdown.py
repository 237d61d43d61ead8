"""report.md and the closing table of the terminal, from the same `Report` as the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rpam_lite.checkpoint.files import size_text
from rpam_lite.report.data import LONG, File, FitLog, Lambdas, Report, Row

# What a reader is told of each measure of `quant.adaptivity`.
ADAPTIVITY = {
    "length_ratio": "tokens, of Long's",
    "correct_length_ratio": "tokens of right answers, of Long's",
    "index": "place between Short (0) and Long (1), on log tokens",
    "index_spearman": "rank correlation of that place with difficulty",
    "index_slope": "its slope a level of difficulty",
    "overthink": "long answers where Short is right",
    "underthink": "short and wrong answers where Long is right",
    "execution": "right answers less those of the parent whose way each takes",
    "auroc": 'AUROC of its tokens for "only Long is right"',
}


def markdown(report: Report) -> str:
    """report.md; its pictures are frontier.png and, of fitted coefficients, coefficients.png."""
    parts = [_measured(report), quantization_section(report.files)]
    if report.lambdas is not None and report.fit is not None:
        parts += [_coefficients_section(report.lambdas), _fit_section(report.fit)]
    parts.append(f"\n## Recipe\n\n```yaml\n{report.recipe}```\n")
    return "".join(parts)


def closing(report: Report) -> str:
    """What a run ends with: the closing table, long answers by level, and the verdicts."""
    told = [row for row in report.rows if row["kind"] != "scalar" or row in report.nearest_scalars]
    levels = f"Long answers:\n\n{level_table(told, 'long', percent)}\n\n" if report.has_levels else ""
    warning = report.fit.warning if report.fit is not None else ""
    return f"\n{closing_table(report.rows)}\n\n{levels}" + "\n".join(
        [*verdicts(report.rows), *([f"WARNING from the fit: {warning}."] if warning else []), ""]
    )


def wish_kept(rows: Sequence[Row], tokens_share: float | None, points: float | None) -> str:
    """What the recipe wished of the merge beside what it does on the held-out questions; empty without a wish."""
    long = next(row for row in rows if row["name"] == LONG)
    merge = next(row for row in rows if row["kind"] == "merge")
    told = []
    if tokens_share is not None:
        told.append(
            f"at most {percent(tokens_share)} of Long's tokens: {merge['name']} has "
            f"{percent(merge['tokens'] / long['tokens'])} on the held-out questions"
        )
    if points is not None:
        lost = 100 * (long["accuracy"] - merge["accuracy"])
        told.append(
            f"at most {points:g} points below Long: {merge['name']} is {abs(lost):.1f} "
            f"{'below' if lost > 0 else 'above'} on the held-out questions"
        )
    return f"Wished for {'; '.join(told)}." if told else ""


def closing_table(rows: Sequence[Row]) -> str:
    """Accuracy, tokens, truncation and long share of every row, as a Markdown table."""
    lines = [
        "| model | accuracy | 95 % interval | mean tokens | 95 % interval | truncated | long answers |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        _, low, high = r["intervals"]["pass@1"]
        _, few, many = r["intervals"]["tokens"]
        lines.append(
            f"| {r['name']} | {percent(r['accuracy'])} | {100 * low:.1f} to {100 * high:.1f} | {r['tokens']:.1f} "
            f"| {few:.1f} to {many:.1f} | {percent(r['truncated'])} | {percent(r['long'])} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence a merged file: where it stands against the scalar curve at equal tokens."""
    return [sentence for row in rows if (sentence := verdict(row))]


def verdict(row: Row) -> str:
    """Where a merged file stands against scalar curve and tossed coin at equal tokens; empty if not measured."""
    gain, coin = row.get("over_curve"), row.get("over_coin")
    if not gain:
        return ""
    told = (
        f"{row['name']}: {percent(row['accuracy'])} at {row['tokens']:.1f} tokens; the scalar curve has "
        f"{percent(gain['curve_accuracy'])} there: {100 * gain['gain']:+.1f} points "
        f"(95 % interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    )
    return f"{told}, a coin tossed between both parents {percent(coin['curve_accuracy'])}." if coin else f"{told}."


def block_table(rows: Sequence[Row]) -> str:
    """Share and mean tokens of answers without a think block, with a closed one, with one that never closes.

    An answer that never closes its block is not a short one: the share of closed blocks alone says
    nothing about adaptivity.
    """
    lines = ["| model | no block | tokens | closed | tokens | never closed | tokens |", "|---|" + "---:|" * 6]
    for row in rows:
        cells = []
        for block in row["blocks"].values():
            tokens = "-" if block["tokens"] is None else f"{block['tokens']:.1f}"
            cells += [percent(block["share"]), tokens]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adaptivity_table(rows: Sequence[Row]) -> str:
    """Measures of adaptivity of every merged file, with their 95 % intervals, as a Markdown table."""
    merged = [row for row in rows if row.get("adaptivity")]
    lines = ["| measure | " + " | ".join(row["name"] for row in merged) + " |", "|---|" + "---:|" * len(merged)]
    for measure, meaning in ADAPTIVITY.items():
        found = [row["adaptivity"].get(measure) for row in merged]  # older runs lack some
        cells = ["-" if i is None else f"{i[0]:.2f} ({i[1]:.2f} to {i[2]:.2f})" for i in found]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def level_table(rows: Sequence[Row], field: str, show: Callable[[float], str]) -> str:
    """One field by difficulty level, as a Markdown table."""
    levels = list(rows[0]["levels"])
    lines = ["| model | " + " | ".join(f"level {level}" for level in levels) + " |"]
    lines.append("|---|" + "---:|" * len(levels))
    for row in rows:
        lines.append(f"| {row['name']} | " + " | ".join(show(row["levels"][level][field]) for level in levels) + " |")
    return "\n".join(lines)


def quantization_section(files: Sequence[File]) -> str:
    """Size of each file, and how far a quantized one is from the unquantized one."""
    rows = []
    for file in files:
        d = file.divergence
        told = (
            f"{d['mean']:.2g} ± {d['error']:.1g} | {d['median']:.2g} | {d['p99']:.2g} | {percent(d['same_top'])}"
            if d
            else "- | - | - | -"
        )
        rows.append(f"| {file.type} | {size_text(file.size)} | {told} | {percent(file.row['accuracy'])} |")
    return f"""
## Quantization

KL divergence to the unquantized file in nats a token, on the calibration traces' answers.

| type | size | mean | median | 99th percentile | same top token | accuracy |
|---|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}
"""


def percent(share: float) -> str:
    """A share as percent."""
    return f"{100 * share:.1f} %"


def _measured(report: Report) -> str:
    """What was measured."""
    rows = report.rows
    by_level = "".join(
        f"\n{title}:\n\n{level_table(rows, field, show)}\n"
        for title, field, show in (
            ("Accuracy", "accuracy", percent),
            ("Mean generated tokens", "tokens", lambda v: f"{v:.1f}"),
            ("Truncated answers", "truncated", percent),
            ("Long answers", "long", percent),
        )
    )
    return f"""# {report.origin.name}: what the merge does

Method: {report.origin.method}.

Greedy answers to {report.questions} held-out questions in llama.cpp. A long answer has at least
{report.long_think_tokens} tokens inside its think block; a truncated one was cut off after
{report.max_tokens} tokens and counts as wrong.

{closing_table(rows)}

Against plain interpolation with one number, at equal tokens (paired bootstrap over questions):

{chr(10).join(f"- {sentence}" for sentence in verdicts(rows))}

![Accuracy against tokens, and share of long answers by level](frontier.png)

## Adaptivity

How length follows what a question needs, with 95 % intervals (bootstrap over questions).

{adaptivity_table(rows)}

## By level
{by_level if report.has_levels else chr(10) + "The questions tell no levels of difficulty." + chr(10)}
## By think block

{block_table(rows)}
"""


def _coefficients_section(lambdas: Lambdas) -> str:
    values = [
        (f"layers.{layer}{f'.{name}' if name else ''}", spread)
        for name, part in lambdas.parts.items()
        for layer, spread in part.items()
    ]
    values += list(lambdas.others.items())
    lines = "\n".join(f"| {group} | {s.mean:.3f} | {s.deviation:.3f} |" for group, s in values)
    return f"""
## Coefficients

Lambda weights the Long parent: W = S + lambda * (L - S). With one lambda a row or a weight, the mean is shown.

![Lambda per layer](coefficients.png)

| group | lambda | standard deviation over rows |
|---|---:|---:|
{lines}
"""


def _fit_section(log: FitLog) -> str:
    warning = f"\n**Warning:** {log.warning}.\n" if log.warning else ""
    if not log.terms:
        return f"\n## Fit\n{warning}\nThe fit logged no joint steps.\n"
    losses = "\n".join(
        f"| {i} | " + " | ".join(f"{value:.4f}" for value in step) + " |"
        for i, step in enumerate(zip(*log.terms.values(), strict=True), 1)
    )
    return f"""
## Fit
{warning}
| step | {" | ".join(log.terms)} |
|---|{"---:|" * len(log.terms)}
{losses}
"""
