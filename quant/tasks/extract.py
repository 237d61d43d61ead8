"""Where in a generated text the answer stands. Every pattern takes linear time: a text may be 1 MB of garbage."""

from __future__ import annotations

import re

from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN

# An escaped brace is no brace, and two backslashes are a line break, not an escape.
_BRACES = re.compile(r"\\boxed\s{0,4}\{|\\\\|\\[{}]|[{}]")
_WRAPPER = re.compile(r"\\[a-zA-Z]+|[{}$*]")
# "C", "(C)", "C. 42", "Option C"; a lower-case letter only where it stands alone.
_LETTERS = r"[A-J](?:\W{0,3}(?:,|;|/|&|\band\b|\bor\b)\W{0,3}[A-J](?![A-Za-z]))*"
_BOXED_LETTER = re.compile(rf"\W*(?:(?i:option|choice|answer)\W*)?({_LETTERS})(?![A-Za-z])|\W*([a-j])\W*$")
# "Answer: C", "**Answer:** (C)", "the answer is option C"; not "Answer: A mole has ...".
_ANSWER_LINE = re.compile(
    r"(?i:answer)[^\w\"]{0,8}(?:(?i:is)[^\w\"]{0,8})?(?:(?i:option|choice)[^\w\"]{0,4})?"
    rf"({_LETTERS})(?![A-Za-z'’]|\s+[a-z])"
)
_ANSWER_JSON = re.compile(r"\"answer\"\s{0,4}:\s{0,4}\"\W{0,2}([A-Ja-j])\W{0,2}\"", re.IGNORECASE)


def after_think(text: str, think_open: bool = False) -> str | None:
    """What follows the think block; None where a block was opened, by the text or the prompt, and never closed."""
    _, closed, answer = text.rpartition(THINK_CLOSE)
    if THINK_OPEN in answer or (think_open and not closed):
        return None
    return answer


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` whose braces balance; None without one."""
    if "\\boxed" not in text:
        return None
    opened: list[re.Match[str]] = []
    last_start, content = -1, None
    for brace in _BRACES.finditer(text):
        if brace[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{" and start.start() > last_start:
                last_start, content = start.start(), text[start.end() : brace.start()]
        elif brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace)
    return content


def choice_letter(text: str) -> tuple[str, str]:
    """Chosen letter and where it stood: in the last box, else on the last answer line, else as JSON.

    Two letters, as in "B or C", come back as both, and equal no gold letter. Without any: ("", "").
    """
    boxed = last_boxed(text)
    found = letter_of(boxed) if boxed is not None else ""
    if found:
        return found, "box"
    for path, pattern in (("choice line", _ANSWER_LINE), ("choice json", _ANSWER_JSON)):
        letters = [match[1] for match in pattern.finditer(text)]
        if letters:
            return letter_of(letters[-1]), path
    return "", ""


def letter_of(choice: str) -> str:
    """The letter of a choice as a person writes it, as `\\text{(C)}`; "" if there is none."""
    match = _BOXED_LETTER.match(_WRAPPER.sub(" ", choice[:1000]))
    if match is None:
        return ""
    return "".join(re.findall(r"[A-J](?![A-Za-z])", match[1])) if match[1] else match[2].upper()
