"""From the graded samples of both parents to a pattern label."""

from __future__ import annotations

from typing import Literal

Pattern = Literal["long", "short"]


def pattern_label(correct_long: int, correct_short: int, samples: int) -> Pattern | None:
    """The parent whose way of answering fits a question.

    Long only if its accuracy is higher by more than 1/(2k); ties go to Short, which is cheaper.
    Token counts play no part: a Long parent that is better and happens to be shorter is still long.

    Args:
        correct_long: Right answers of the Long parent among `samples`.
        correct_short: The same for the Short parent.
        samples: Answers sampled from each parent (k).

    Returns:
        The label, or None where neither parent was ever right: such a question teaches nothing.
    """
    if correct_long == correct_short == 0:
        return None
    advantage = (correct_long - correct_short) / samples
    return "long" if advantage > 1 / (2 * samples) else "short"
