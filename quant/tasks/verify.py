"""math-verify, and patterns, in worker processes: what a model wrote can take for ever to parse.

Above stands what the grader calls, below what the worker processes run.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from quant.tasks.workers import ask

SECONDS = 10.0


@lru_cache(maxsize=65536)
def verified(gold: str, answer: str, seconds: float = SECONDS, tolerance: float = 0.0) -> bool | None:
    """Whether two expressions are mathematically the same; None if that took too long to find out.

    Args:
        gold: The reference. The order matters: intervals are accepted in one direction only.
        answer: What the model answered.
        seconds: After these the process is killed.
        tolerance: Absolute error up to which numbers are the same as well.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """
    same: bool | None = _asked("_same", gold, answer, tolerance, seconds=seconds, otherwise=False)
    return same


@lru_cache(maxsize=65536)
def last_expression(text: str, seconds: float = SECONDS) -> str | None:
    """What math-verify takes for the answer of a text without a box; "" for nothing, None if it took too long."""
    found: str | None = _asked("_extract", text, seconds=seconds, otherwise="")
    return found


@lru_cache(maxsize=65536)
def last_match(pattern: str, text: str, seconds: float = SECONDS) -> list[str] | None:
    """First group of a pattern's last match (all of it without groups); [] for no match, None if it took too long."""
    found: list[str] | None = _asked("_find", pattern, text, seconds=seconds, otherwise=[])
    return found


def _asked(function: str, *arguments: Any, seconds: float, otherwise: Any) -> Any:
    if function != "_find" and find_spec("math_verify") is None:
        raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")
    try:
        return ask(f"quant.tasks.verify:{function}", *arguments, seconds=seconds)
    except TimeoutError:
        return None
    except RuntimeError:  # math-verify stumbled over it, or ran out of memory
        return otherwise


def _same(gold: str, answer: str, tolerance: float) -> bool:
    from math_verify import verify

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


def _extract(text: str) -> str:
    # The last element is the text of what was found, or all that was found if sympy knows no such expression.
    found = _parse(text)
    return str(found[-1]) if found else ""


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # Without a time-out of its own, which would need SIGALRM: the process is killed instead.
    expressions: list[Any] = parse(text, parsing_timeout=None)
    return expressions


def _find(pattern: str, text: str) -> list[str]:
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(pattern, text)]
    return [] if not found else [found[-1] or ""]
