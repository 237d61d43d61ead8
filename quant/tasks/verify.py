"""math-verify (expressions.py), and patterns, in worker processes: what a model wrote can take for ever to parse."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from quant.tasks.workers import NotLoadedError, ask
from rpam_lite.errors import RpamError

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
    same: bool | None = _asked(
        "quant.tasks.expressions:same", gold, answer, tolerance, seconds=seconds, otherwise=False
    )
    return same


@lru_cache(maxsize=65536)
def last_expression(text: str, seconds: float = SECONDS) -> str | None:
    """What math-verify takes for the answer of a text without a box; "" for nothing, None if it took too long."""
    found: str | None = _asked("quant.tasks.expressions:extract", text, seconds=seconds, otherwise="")
    return found


@lru_cache(maxsize=65536)
def last_match(pattern: str, text: str, seconds: float = SECONDS) -> list[str] | None:
    """First group of a pattern's last match (all of it without groups); [] for no match, None if it took too long."""
    found: list[str] | None = _asked("quant.tasks.verify:_find", pattern, text, seconds=seconds, otherwise=[])
    return found


def _asked(function: str, *arguments: Any, seconds: float, otherwise: Any) -> Any:
    if function.startswith("quant.tasks.expressions") and find_spec("math_verify") is None:
        raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")
    try:
        return ask(function, *arguments, seconds=seconds)
    except NotLoadedError as error:
        raise RpamError(f"math-verify can't be imported ({error}); pip install 'rpam_lite[eval]' once more.") from None
    except TimeoutError:
        return None
    except RuntimeError:  # math-verify stumbled over it, or ran out of memory
        return otherwise


def _find(pattern: str, text: str) -> list[str]:
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(pattern, text)]
    return [] if not found else [found[-1] or ""]
