"""How much there is to compute on, before any question has been answered."""

from __future__ import annotations

from rpam_lite.recipe import Recipe
from rpam_lite.streaming.plan import WorkSize

# What `capture.top_k: auto` is planned with; it takes more only where that fits the budget too.
ASSUMED_TOP_K = 64


def estimated_work(recipe: Recipe | None, questions: int, tokens: int) -> WorkSize:
    """A calibration set of this many questions and tokens, as the recipe would keep it."""
    response = tokens // 2
    if recipe is not None and recipe.capture.answer_tokens is not None:
        tokens, response = tokens - response, min(response, recipe.capture.answer_tokens)
        tokens += response
    kept = tokens
    if recipe is not None:
        settings = recipe.capture
        answered = response if settings.response_tokens is None else min(response, settings.response_tokens)
        kept = (tokens - response if "prompt" in settings.positions else 1) + (
            answered // settings.response_stride if "response" in settings.positions else 0
        )
    return WorkSize(
        tokens=questions * tokens,
        longest=tokens,
        kept=questions * kept,
        targets=questions * (response + 1),
        distinct=min(questions * tokens, 8192),
        top_k=assumed_top_k(recipe),
    )


def traces_of(recipe: Recipe) -> int:
    """Questions with an answer that capture and fit read at most; where a row decides, each stands twice."""
    return 2 * recipe.capture.questions_per_class * (1 + recipe.family.decides)


def assumed_top_k(recipe: Recipe | None) -> int:
    """Log-probabilities a position, as far as that is known before the capture."""
    return ASSUMED_TOP_K if recipe is None or recipe.capture.top_k == "auto" else recipe.capture.top_k
