"""What the worker processes run of math-verify.

A module of its own, so that its import, which takes sympy's many seconds on a slow machine, counts as the start of a
process and not as the time of the first answer: those answers were graded wrong.
"""

from __future__ import annotations

from typing import Any

from math_verify import parse, verify


def same(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two expressions are mathematically the same, or numbers at most `tolerance` apart."""
    expected = _parse(f"${gold}$")
    found = expected if gold == answer else _parse(f"${answer}$")
    # json has no numpy or sympy booleans.
    if bool(verify(expected, found, timeout_seconds=None)):
        return True
    if not tolerance:
        return False
    numbers, others = _numbers(expected), _numbers(found)
    # The last bit: 4.3 - 4.2 is a little more than 0.1.
    return 0 < len(numbers) == len(others) and all(
        abs(e - f) <= tolerance * (1 + 1e-9) + 1e-12 for e, f in zip(numbers, others, strict=True)
    )


def _numbers(expressions: list[Any]) -> list[float]:
    """The numbers of a parsed answer, sorted; none where something else is among them."""
    if not expressions:
        return []
    several = expressions[0] if hasattr(expressions[0], "__iter__") else [expressions[0]]
    try:
        return sorted(float(number) for number in several)
    except (TypeError, ValueError):
        return []


def extract(text: str) -> str:
    """What stands in a text as its answer; "" for nothing."""
    # The last element is the text of what was found, or all that was found if sympy knows no such expression.
    found = _parse(text)
    return str(found[-1]) if found else ""


def _parse(text: str) -> list[Any]:
    # Without a time-out of its own, which would need SIGALRM: the process is killed instead.
    expressions: list[Any] = parse(text, parsing_timeout=None)
    return expressions
