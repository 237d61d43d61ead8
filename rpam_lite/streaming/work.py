"""How much there is to compute on, before any question has been answered."""

from __future__ import annotations

from pathlib import Path

from rpam_lite.recipe import Asked, Recipe
from rpam_lite.streaming.plan import WorkSize

# What `capture.top_k: auto` is planned with; it takes more only where that fits the budget too.
ASSUMED_TOP_K = 64
_TOKENS = 512  # of a question with its answer


def estimated_work(recipe: Recipe | None, questions: int, tokens: int) -> WorkSize:
    """A calibration set of this many questions and tokens, as the recipe would keep it."""
    response = tokens // 2
    if recipe is not None and recipe.capture.answer_tokens is not None:
        tokens, response = tokens - response, min(response, recipe.capture.answer_tokens)
        tokens += response
    return WorkSize(
        tokens=questions * tokens,
        longest=tokens,
        kept=questions * (0 if recipe is None else _kept(recipe, tokens - response, response)),
        targets=questions * (response + 1),
        distinct=min(questions * tokens, 8192),
        top_k=assumed_top_k(recipe),
    )


def _kept(recipe: Recipe, prompt: int, response: int) -> int:
    """Positions of a question whose hidden states are kept."""
    settings = recipe.capture
    if not recipe.reads_hidden_states:
        return 0
    answered = response if settings.response_tokens is None else min(response, settings.response_tokens)
    of_response = answered // settings.response_stride if "response" in settings.positions else 0
    return (prompt if "prompt" in settings.positions else 1) + of_response


def assumed_tokens(recipe: Recipe | None) -> int:
    """Prompt and response of a question, before any has been answered; half of them are taken for the response."""
    if recipe is None:
        return _TOKENS // 2
    return 2 * min(_TOKENS // 2, recipe.label.max_tokens, recipe.capture.answer_tokens or recipe.label.max_tokens)


def traces_of(recipe: Recipe) -> int:
    """Questions with an answer that capture and fit read at most; where a row decides, each stands twice."""
    chosen = 2 * recipe.capture.questions_per_class
    return min(chosen, questions_of(recipe.label) or chosen) * (1 + recipe.family.decides)


def questions_of(asked: Asked) -> int | None:
    """How many questions a recipe asks at most, as far as that is known without loading a data set."""
    if isinstance(asked.questions, Path):
        return _lines(asked.questions) if asked.questions.is_file() else None
    sizes = list(asked.questions.values())
    return sum(size for size in sizes if size is not None) if None not in sizes else None


def _lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(bool(line.strip()) for line in stream)


def assumed_top_k(recipe: Recipe | None) -> int:
    """Log-probabilities a position, as far as that is known before the capture."""
    return ASSUMED_TOP_K if recipe is None or recipe.capture.top_k == "auto" else recipe.capture.top_k
