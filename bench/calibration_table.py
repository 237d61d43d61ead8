"""What bench.calibration prints: a line a member, and a table over the draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_COLUMNS = (
    "questions",
    "lambdas",
    "member",
    "loss of the fit",
    "promised: right, % at tokens",
    "tokens, spread of draws",
    "right, %",
    "below Long, points: promised",
    "measured, spread of draws",
    "less the parents' own answers, points",
    "over the curve, points: mean",
    "spread of draws",
    "worst to best",
    "interval above 0",
)


def line(cell: dict[str, Any]) -> str:
    """One member in one line."""
    return (
        f"{cell['name']}: loss {cell['loss'][0]:.3f} -> {cell['loss'][1]:.3f}, {100 * cell['accuracy']:.1f} % at "
        f"{cell['tokens']:.1f} tokens, {100 * cell['gain']:+.1f} points ({100 * cell['low']:+.1f} to "
        f"{100 * cell['high']:+.1f})"
    )


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: by size, granularity and member the mean gain over the draws and its spread."""
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for cell in found:
        groups.setdefault((cell["size"], cell["granularity"], cell["member"]), []).append(cell)
    rows = [
        (str(size), f"one a {granularity}", member, *_figures(own))
        for (size, granularity, member), own in groups.items()
    ]
    head = [f"| {' | '.join(_COLUMNS)} |", "|---:|---|---|" + "---:|" * (len(_COLUMNS) - 3)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def _figures(draws: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns from the loss on, over the draws of one member."""
    loss, accuracy = np.mean([[cell["loss"][1], 100 * cell["accuracy"]] for cell in draws], axis=0)
    promises = [cell["promised"] for cell in draws]
    right, cost = np.mean([[100 * told["accuracy"], told["tokens"]] for told in promises], axis=0)
    tokens = np.array([cell["tokens"] for cell in draws])
    promised, below = 100 * np.array([cell["below_long"] for cell in draws]).T
    gains = 100 * np.array([cell["gain"] for cell in draws])
    return (
        f"{loss:.3f}",
        f"{right:.1f} at {cost:.1f}",
        f"{tokens.mean():.1f} {_spread(tokens)}",
        f"{accuracy:.1f}",
        f"{promised.mean():.1f}",
        f"{below.mean():.1f} {_spread(below)}",
        f"{100 * np.mean([cell['execution'] for cell in draws]):+.1f}",
        f"{gains.mean():+.1f}",
        _spread(gains),
        f"{gains.min():+.1f} to {gains.max():+.1f}",
        f"{sum(cell['low'] > 0 for cell in draws)} of {len(draws)}",
    )


def _spread(values: np.ndarray) -> str:
    return f"± {values.std(ddof=1):.1f}" if len(values) > 1 else "± -"
