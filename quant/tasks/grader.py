"""Is this answer right? math-verify behind rules that are safe for reasoning traces.

Only what follows `</think>` counts; a think block that never closes is a truncated answer; of
several boxes the last one counts. math-verify alone would take the last number of a cut-off trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quant.tasks.verify import verified

GRADER_VERSION = 1
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
# No answer is longer; what is, is a runaway generation.
_LONGEST_ANSWER = 300
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Verdict:
    """Right or wrong, and why."""

    correct: bool
    reason: str


def grade(text: str, gold: str, truncated: bool = False) -> Verdict:
    """Grade a whole generated text against the gold answer.

    Args:
        text: What the model generated, think block included.
        gold: The reference answer, a number or a LaTeX expression.
        truncated: Whether the text was cut off; such an answer is wrong, whatever it had said by then.
    """
    if truncated:
        return Verdict(False, "truncated")
    _, closed, answer = text.rpartition(THINK_CLOSE)
    if not closed and THINK_OPEN in text:
        return Verdict(False, "think block not closed")
    boxed = last_boxed(answer)
    if boxed is None:
        return Verdict(False, "no \\boxed{} answer")
    if len(boxed) > _LONGEST_ANSWER:
        return Verdict(False, f"answer longer than {_LONGEST_ANSWER} characters")
    boxed = boxed.strip()
    if boxed == gold.strip():
        return Verdict(True, "same text")
    if _INTEGER.fullmatch(boxed) and _INTEGER.fullmatch(gold.strip()):
        return Verdict(int(boxed) == int(gold), "integers compared")
    same = verified(gold.strip(), boxed)
    return Verdict(bool(same), "math-verify took too long" if same is None else "math-verify")


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` whose braces balance; None without one."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for i in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : i]
        start = text.rfind("\\boxed{", 0, start)
    return None


def is_gradable(gold: str) -> bool:
    """Whether some boxed answer could be graded right against `gold`.

    The content of a box has balanced braces and a bounded length, and must equal itself for math-verify.
    """
    gold = gold.strip()
    if not gold or len(gold) > _LONGEST_ANSWER or last_boxed(f"\\boxed{{{gold}}}") != gold:
        return False
    return _INTEGER.fullmatch(gold) is not None or bool(verified(gold, gold))
