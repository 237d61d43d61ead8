"""Questions of two files that are the same, or nearly so."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from quant.tasks.benchmarks import without_instruction
from quant.tasks.questions import Question

SHINGLE = 3  # words
NEAR = 0.5  # Jaccard similarity of two questions' shingles from which on they are one question
# Numbers, words (hyphenated ones whole), and every other sign by itself.
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)*|[^\w\s]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = frozenset(".,;:?!'\"`“”‘’$\\")


@dataclass(frozen=True)
class Overlap:
    """A calibration question that a measured one repeats.

    Attributes:
        calibration: The one.
        measured: The other.
        similarity: Jaccard similarity of their shingles; 1 where all words are the same.
    """

    calibration: Question
    measured: Question
    similarity: float


def overlaps(calibration: Sequence[Question], measured: Sequence[Question]) -> list[Overlap]:
    """Calibration questions that occur among the measured ones, each with the most similar of them.

    Two questions are the same if their words are: case, spaces and punctuation do not count, numbers and
    operators do. They are nearly the same if they hold the same numbers and operators, each as often, and
    at least half of the runs of three words that occur in either occur in both (Jaccard similarity >= 0.5).
    So one problem with a sentence reworded is found; a template filled with other numbers is another one.
    """
    by_terms: dict[tuple[str, ...], list[tuple[Question, list[str], set[str]]]] = defaultdict(list)
    for question in measured:
        words = _words(question.question)
        by_terms[_terms(words)].append((question, words, _shingles(words)))
    found = []
    for question in calibration:
        words = _words(question.question)
        shingles = _shingles(words)
        best = max(
            (
                Overlap(question, other, 1.0 if words == other_words else _jaccard(shingles, other_shingles))
                for other, other_words, other_shingles in by_terms.get(_terms(words), [])
            ),
            key=lambda overlap: overlap.similarity,
            default=None,
        )
        if best is not None and best.similarity >= NEAR:
            found.append(best)
    return found


def _words(text: str) -> list[str]:
    """Words in lower case, numbers without thousands separators, signs; not punctuation, nor an instruction of ours."""
    text = _THOUSANDS.sub("", without_instruction(text))
    return [word for word in _WORD.findall(text.lower()) if word not in _PUNCTUATION]


def _terms(words: Sequence[str]) -> tuple[str, ...]:
    """Numbers and signs, sorted: what a rewording leaves as it is."""
    return tuple(sorted(word for word in words if not word[0].isalpha()))


def _shingles(words: Sequence[str]) -> set[str]:
    """All runs of SHINGLE words; the whole where there are fewer."""
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
