"""Evaluations as tables to print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from quant.measures import accuracy_within, budget_area, by_question, measure
from quant.statistics import Interval, interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quant.comparison import Comparison
    from quant.evaluation import Evaluation
    from quant.frontier import Gain


def console() -> Console:
    """For tables: as wide as the terminal; wide enough for them where the output goes elsewhere."""
    standard = Console()
    return standard if standard.is_terminal else Console(width=max(132, standard.width))


def results_table(evaluation: Evaluation) -> Table:
    """Accuracy, tokens and think blocks of every model on every task, with 95 % intervals."""
    samples = evaluation.settings.samples
    table = Table(title=f"{samples} sample{'s' * (samples > 1)} a question; 95 % intervals", show_edge=False)
    passes = ["pass@1", *([f"pass@{samples}"] if samples > 1 else [])]
    for column in ("task", "model"):
        table.add_column(column, overflow="fold")
    for column in (
        *(f"{name}, %" for name in passes),
        "tokens",
        "of right",
        "think",
        "unclosed, %",
        "cut off, %",
        "tokens/s",
    ):
        table.add_column(column, justify="right")
    for task in evaluation.tasks:
        for run in evaluation.runs:
            found = measure(by_question(run.records[task]), seed=evaluation.settings.sampling.seed)
            table.add_row(
                task,
                run.name,
                *(percent(found[name]) for name in passes),
                number(found["tokens"]),
                f"{found['correct_tokens'].value:.0f}",
                f"{found['think_tokens'].value:.0f}",
                *(f"{100 * found[name].value:.1f}" for name in ("block_open", "truncated")),
                f"{run.speed[task]:.0f}" if task in run.speed else "",
            )
    return table


def budget_table(evaluation: Evaluation, budgets: Sequence[int]) -> Table:
    """Accuracy that counts only right answers within a budget of generated tokens, and the area under it.

    The area goes over all budgets up to the largest of `budgets`, as a share of it.
    """
    table = Table(title="pass@1 within a budget of tokens, %; 95 % intervals", show_edge=False)
    for column in ("task", "model"):
        table.add_column(column, overflow="fold")
    for column in (*(f"{budget} tokens" for budget in budgets), "area"):
        table.add_column(column, justify="right")
    seed = evaluation.settings.sampling.seed
    for task in evaluation.tasks:
        for run in evaluation.runs:
            answers = by_question(run.records[task])
            within = accuracy_within(answers, budgets)
            cells = [percent(interval(within[:, i], seed=seed)) for i in range(len(budgets))]
            area = interval(budget_area(answers, max(budgets)), seed=seed)
            table.add_row(task, run.name, *cells, f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Differences of pairs, with 95 % intervals of the paired bootstrap."""
    table = Table(title="differences, paired, 95 % intervals", show_edge=False)
    for column in ("task", "model", "against"):
        table.add_column(column, overflow="fold")
    for column in ("points of accuracy", "times the tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for d in comparison.differences:
        points = f"{100 * d.accuracy.value:+.1f} ({100 * d.accuracy.low:+.1f} to {100 * d.accuracy.high:+.1f})"
        times = f"{d.tokens.value:.2f} ({d.tokens.low:.2f} to {d.tokens.high:.2f})"
        table.add_row(d.task, d.model, d.other, points, times)
    return table


def curve_table(gains: Mapping[str, Mapping[str, Gain]]) -> Table:
    """Models above plain interpolation at equal tokens, by model and task."""
    table = Table(title="against plain interpolation at the same mean tokens, 95 % intervals", show_edge=False)
    for column in ("task", "model", "tokens", "accuracy", "interpolation", "points above it"):
        table.add_column(column, justify="left" if column in ("task", "model") else "right")
    for model, tasks in gains.items():
        for task, g in tasks.items():
            above = f"{100 * g.gain:+.1f} ({100 * g.low:+.1f} to {100 * g.high:+.1f})"
            cells = (f"{g.tokens:.0f}", f"{100 * g.accuracy:.1f} %", f"{100 * g.curve_accuracy:.1f} %")
            table.add_row(task, model, *cells, above)
    return table


def adaptivity_table(found: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> Table:
    """How length follows what a question needs, by model and task; see quant/adaptivity.py for the measures."""
    table = Table(title="adaptivity between Short and Long, 95 % intervals", show_edge=False)
    for column in ("task", "model", "measure", "value", "interval"):
        table.add_column(column, justify="right" if column in ("value", "interval") else "left")
    for model, tasks in found.items():
        for task, measures in tasks.items():
            for name, i in measures.items():
                table.add_row(task, model, name, f"{i.value:.3f}", f"{i.low:.3f} to {i.high:.3f}")
    return table


def percent(i: Interval) -> str:
    """A share in percent, with its interval."""
    return f"{100 * i.value:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})"


def number(i: Interval) -> str:
    """Tokens with their interval."""
    return f"{i.value:.0f} ({i.low:.0f} to {i.high:.0f})"
