"""Is this answer right? Graders by name, behind rules that are safe for reasoning traces.

| grader | compares |
|---|---|
| `math` | the last box, as mathematics (equal.py) |
| `exact` | the last box, or else the whole answer, as text without regard to case and spaces |
| `choice` | the letter in the last box, or else of "Answer: C", or else of `"answer": "C"` |
| `regex` | first group of the last match of your pattern, as text without regard to case and spaces |
| `package.module:function` | whatever your `function(answer, gold)` returns True for |
| a name of the entry-point group `rpam_lite.graders` | the same, from an installed package |

Only what follows `</think>` counts; a think block that never closes is a truncated answer; of several
boxes the last one counts. math-verify alone would take the last number of a cut-off trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points

from quant.tasks.equal import same_answer, same_expression
from quant.tasks.extract import after_think, choice_letter, last_boxed, letter_of
from quant.tasks.verify import SECONDS, last_expression, last_match
from quant.tasks.workers import NotLoadedError, ask, load
from rpam_lite.errors import RpamError

__all__ = ["GRADERS", "GRADER_VERSION", "Verdict"]
__all__ += ["check_grader", "grade", "is_gradable", "last_boxed"]

GRADER_VERSION = 2
GRADERS = ("math", "exact", "choice", "regex")
ENTRY_POINTS = "rpam_lite.graders"
# No answer is longer; what is, is a runaway generation.
_LONGEST_ANSWER = 300
# Where an answer without a box is looked for: people, too, look at the end.
_TAIL = 2000


# Reasons of verdicts on texts that hold no answer to compare.
UNANSWERED = {"truncated", "think block not closed", "no \\boxed{} answer", "no letter", "no match of the pattern"}


@dataclass(frozen=True)
class Verdict:
    """Right or wrong, why, and by which path the answer was found.

    Attributes:
        correct: Right or wrong.
        reason: Why.
        path: "box", "no box" (the fallback of `math`), "choice line", "choice json", "text", "pattern",
            "function"; empty where no answer was looked for or none was found.
    """

    correct: bool
    reason: str
    path: str = ""


def grade(
    text: str,
    gold: str,
    truncated: bool = False,
    think_open: bool = False,
    fallback: bool = False,
    grader: str = "math",
    pattern: str = "",
    tolerance: float = 0.0,
) -> Verdict:
    """Grade a whole generated text against the gold answer.

    Args:
        text: What the model generated, think block included.
        gold: The reference answer.
        truncated: Whether the text was cut off; such an answer is wrong, whatever it had said by then.
        think_open: Whether the prompt had opened the think block, so that the text only closes it.
        fallback: `math` only: without a box, take what math-verify finds in the end of the answer.
        grader: One of GRADERS, an entry point of the group `rpam_lite.graders`, or "package.module:function".
        pattern: `regex` only: a Python regular expression.
        tolerance: `math` only: absolute error up to which numbers are right.

    Raises:
        RpamError: There is no such grader, or it returned something else than True or False.
    """
    if truncated:
        return Verdict(False, "truncated")
    answer = after_think(text, think_open)
    if answer is None:
        return Verdict(False, "think block not closed")
    match grader:
        case "math":
            return _math(answer, gold, fallback, tolerance)
        case "exact":
            boxed = last_boxed(answer)
            found, path = (answer, "text") if boxed is None else (boxed, "box")
            return Verdict(_plain(found) == _plain(gold), "texts compared", path)
        case "choice":
            letter, path = choice_letter(answer)
            return (
                Verdict(letter == letter_of(gold), "letters compared", path) if letter else Verdict(False, "no letter")
            )
        case "regex":
            return _regex(answer, gold, pattern)
    return _function(answer.strip(), gold, grader)


def check_grader(grader: str, pattern: str = "") -> None:
    """Refuse a grader that could not grade, before anything is generated for it.

    Raises:
        RpamError: The name, the pattern or the function is wrong; the message says which.
    """
    if pattern and grader != "regex":
        raise RpamError(f"pattern {pattern!r}: only the grader `regex` takes one, not {grader!r}; remove it.")
    if grader == "regex":
        try:
            if not pattern:
                raise RpamError("The grader `regex` has no pattern; give one, with a group around the answer.")
            re.compile(pattern)
        except re.error as error:
            raise RpamError(f"pattern {pattern!r}: is no regular expression ({error}); mend it.") from None
    elif grader not in GRADERS:
        try:
            load(_target(grader))
        except NotLoadedError as error:
            raise RpamError(f"grader {grader!r}: can't be imported ({error}); check its module and name.") from None


def is_gradable(gold: str, grader: str = "math") -> bool:
    """Whether some answer could be graded right against `gold`.

    For `math`: the content of a box has balanced braces and a bounded length, and must equal itself for
    math-verify. For `choice`: one letter. Other graders take any text.
    """
    gold = gold.strip()
    if grader == "choice":
        return len(letter_of(gold)) == 1
    if not gold or grader != "math":
        return bool(gold)
    if len(gold) > _LONGEST_ANSWER or last_boxed(f"\\boxed{{{gold}}}") != gold:
        return False
    return re.fullmatch(r"[+-]?\d+", gold) is not None or same_expression(gold, gold)[0]


def _math(answer: str, gold: str, fallback: bool, tolerance: float) -> Verdict:
    found, path = last_boxed(answer), "box"
    if found is None and fallback:
        found, path = last_expression(answer[-_TAIL:]), "no box"
        if found is None:
            return Verdict(False, "math-verify took too long", path)
        found = found or None
    if found is None:
        return Verdict(False, "no answer" if fallback else "no \\boxed{} answer")
    if len(found) > _LONGEST_ANSWER:
        return Verdict(False, f"answer longer than {_LONGEST_ANSWER} characters", path)
    return Verdict(*same_answer(gold, found, tolerance), path)


def _regex(answer: str, gold: str, pattern: str) -> Verdict:
    found = last_match(pattern, answer)
    if found is None:
        return Verdict(False, "pattern took too long")
    if not found:
        return Verdict(False, "no match of the pattern")
    return Verdict(_plain(found[0]) == _plain(gold), "texts compared", "pattern")


def _function(answer: str, gold: str, grader: str) -> Verdict:
    try:
        value = ask(_target(grader), answer, gold, seconds=SECONDS)
    except NotLoadedError as error:
        raise RpamError(f"grader {grader!r}: can't be imported ({error}); check its module and name.") from None
    except TimeoutError:
        return Verdict(False, "took too long", "function")
    except RuntimeError as error:
        return Verdict(False, f"the grader failed: {error}", "function")
    if not isinstance(value, bool):
        raise RpamError(f"grader {grader!r}: returned {value!r}; it must return True or False.")
    return Verdict(value, "function", "function")


def _target(grader: str) -> str:
    """The function of a grader, as "package.module:function"."""
    if ":" in grader:
        return grader
    for point in entry_points(group=ENTRY_POINTS, name=grader):
        return f"{point.module}:{point.attr}"
    raise RpamError(
        f"grader {grader!r}: there is no such grader; take one of {', '.join(GRADERS)}, "
        f"'package.module:function', or an entry point of the group {ENTRY_POINTS!r}."
    )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
