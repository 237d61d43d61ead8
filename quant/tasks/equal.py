"""Are two mathematical answers the same, as a person would say? math-verify, mended where a person differs.

What math-verify 0.9 does by itself is frozen in tests/quant/test_math_verify.py. Left as it is: a percentage
equals its number and its fraction (10% is 10 and 0.1, as one never knows which of them the question wanted);
`(1,2)` may be a point or an interval, so `1<x<2` is the same.
"""

from __future__ import annotations

import re

from quant.tasks.verify import verified

_INTEGER = re.compile(r"[+-]?\d+")
_TEXT = r"\\(?:text|textbf|textrm|mathrm|mbox|operatorname)\s*"
_TEXT_GROUP = re.compile(_TEXT + r"\{([^{}]*)\}")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")
_MIXED = re.compile(r"(?<![\d.,])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,;:! ]|~| )\d{3})+(?!\d)")
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|quad(?![a-z])|qquad(?![a-z]))|~")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?")
_NUMBER_IN_TEXT = re.compile(_TEXT + r"\{\s*(-?[\d.,]*\d)\s+([^{}]*)\}")
_NUMERAL = re.compile(r"([0-9A-Z]+)(?:_\{?(\d+)\}?)?")
_TUPLE = re.compile(r"\(.*,.*\)")
_SET = re.compile(r"\\\{.*,.*\\\}")
_INTERVALS = re.compile(r"[(\[].*,.*[)\]]")
_INEQUALITY = re.compile(r"[<>≤≥]|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant)(?![a-z])")
_OR = re.compile(_TEXT + r"\{\s*or\s*\}|\bor\b|\\lor|\\vee|\\cup")
_UNIT = re.compile(_TEXT + r"\{[~\s]*([A-Za-z]+)\.?[~\s]*\}(?:\s*\^\s*\{?\d\}?)?\s*$")
_UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "s": "s sec second seconds",
        "min": "min minute minutes",
        "h": "h hr hour hours",
        "cent": "cent cents",
        "dollar": "dollar dollars",
    }.items()
    for name in names.split()
}


def same_answer(gold: str, answer: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Whether an answer is the gold answer, and how that was found out.

    Args:
        gold: The reference, a number or a LaTeX expression.
        answer: What the model answered.
        tolerance: Absolute error up to which numbers are the same as well.
    """
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return True, "same text"
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold) and not tolerance:
        return int(answer) == int(gold), "integers compared"
    return same_expression(gold, answer, tolerance)


def same_expression(gold: str, answer: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """As `same_answer`, but equal texts are parsed too."""
    gold, answer = _tidy(gold), _tidy(answer)
    if _words(gold) is not None and _words(gold) == _words(answer):
        return True, "same words"
    same_numeral = _same_numeral(gold, answer)
    if same_numeral is not None:
        return same_numeral, "numerals of a base compared"
    # math-verify lets a pair and a set be the same if the pair happens to be sorted.
    for one, other in ((gold, answer), (answer, gold)):
        if _TUPLE.fullmatch(_unsized(one)) and _SET.fullmatch(_unsized(other)):
            return False, "a set is no tuple"
    # math-verify drops units. Only two that are known to differ count: most questions name the unit.
    units = {_UNITS[found[1]] for text in (gold, answer) if (found := _UNIT.search(text)) and found[1] in _UNITS}
    if len(units) == 2:
        return False, "units differ"
    same = verified(gold, answer, tolerance=tolerance)
    if same is None:
        return False, "math-verify took too long"
    if not same and _INEQUALITY.search(answer) and _INTERVALS.fullmatch(_unsized(gold)):
        return _same_interval(gold, answer), "math-verify, inequality for an interval"
    return same, "math-verify"


def _tidy(text: str) -> str:
    """Spellings that math-verify misreads, spelt so that it reads them."""
    text = text.strip()
    # "1e-3" is read as 1 * e - 3; Minerva's gold answers are full of it.
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    # "1 1/2" is read as 1.
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    # "70\,000" is read as 70 * 0.
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    # Fine spaces, as in "58,500\,", are read as a list of 58 and 500, or as nothing at all.
    text = _SPACES.sub(" ", _NO_SPACE.sub("", text)).strip()
    # "0.\overline{3}" is read as 0.
    text = _REPEATING.sub(_fraction, text)
    # "-1./3", as in Minerva, is read as no number at all.
    text = re.sub(r"(?<=\d)\.(?!\d)", "", text)
    # "\text{42 apples}" is read as the symbol 42apples.
    whole = _NUMBER_IN_TEXT.fullmatch(text)
    return f"{whole[1]} \\text{{{whole[2]}}}" if whole else text


def _fraction(match: re.Match[str]) -> str:
    whole, fixed, repeated = match.groups()
    numerator = int(whole + fixed + repeated) - int("0" + whole + fixed)
    return f"\\frac{{{numerator}}}{{{10 ** len(fixed) * (10 ** len(repeated) - 1)}}}"


def _words(text: str) -> str | None:
    """An answer in words without markup, case, spaces and full stop; None for a formula."""
    plain = _TEXT_GROUP.sub(r"\1", text).replace("$", "").replace("\\ ", "")
    # math-verify takes words outside of \text for products of variables.
    if not re.search(r"[A-Za-z]{3}", re.sub(r"\\[A-Za-z]+", "", plain)):
        return None
    return "".join(plain.split()).rstrip(".").casefold()


def _same_numeral(gold: str, answer: str) -> bool | None:
    """Whether two numerals, at least one with a base as in 2516_8, are the same; None for anything else.

    math-verify ignores the base: 2516_9 would do for 2516_8. A base that one of them leaves out is no mistake,
    as the question named it, but the digits must agree: 21 is not 10101_2.
    """
    numerals = [_NUMERAL.fullmatch("".join(text.split())) for text in (gold, answer)]
    if not all(numerals):
        return None
    digits, bases = zip(*(numeral.groups() for numeral in numerals if numeral), strict=True)
    given = {int(base) for base in bases if base is not None}
    # At least one decimal digit: X_1 is a variable.
    if not given or not all(re.search(r"\d", d) for d in digits) or not all(2 <= base <= 36 for base in given):
        return None
    return len(given) == 1 and digits[0].lstrip("0") == digits[1].lstrip("0")


def _same_interval(gold: str, answer: str) -> bool:
    """math-verify takes an interval for an inequality, but no inequality for an interval: ask the other way round.

    Only asked where the gold answer is written as intervals and the answer as inequalities. The parts of a union
    are compared one by one.
    """
    intervals, inequalities = gold.split("\\cup"), _OR.split(answer)
    return len(intervals) == len(inequalities) and all(
        any(verified(inequality, interval) for inequality in inequalities) for interval in intervals
    )


def _unsized(text: str) -> str:
    return text.replace("\\left", "").replace("\\right", "").strip()
