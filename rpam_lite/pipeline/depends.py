"""What the stages' results depend on, where several of them or more than one section of the recipe do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quant.records import RECORD_VERSION
from quant.tasks.grader import GRADER_VERSION
from rpam_lite.pipeline.stage import parent_folders
from rpam_lite.recipe import OURS, Dial, Recipe


def merged_folders(recipe: Recipe) -> list[Path]:
    base = recipe.parents.base
    return list(dict.fromkeys([*parent_folders(recipe), *([base] if base is not None else [])]))


def fits(recipe: Recipe) -> bool:
    """Whether the method's coefficients must be fitted."""
    return recipe.merge.method == OURS


def everything(recipe: Recipe) -> list[Path]:
    return [*merged_folders(recipe), recipe.label.file, recipe.eval.file]


def captured(dial: Dial) -> dict[str, Any] | None:
    """What the choice of traces depends on; where a row decides, no price does."""
    keys = {"by", "questions"} if dial.decides else {"by", "questions", "prices"}
    return dial.model_dump(include=keys) if dial.settings else None


def measured(recipe: Recipe) -> list[Any]:
    """What the dial's measurements depend on."""
    keys = {"max_tokens", "long_think_tokens"}
    return [
        recipe.merge.dtype,
        recipe.export.type,
        GRADER_VERSION,
        RECORD_VERSION,
        recipe.eval.model_dump(include=keys),
    ]
