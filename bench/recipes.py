"""Brings the headers of our recipes up to date: what the planner says of memory, disk and time.

python -m bench.recipes
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import size_text, write_text
from rpam_lite.pipeline.planning import plan_cards
from rpam_lite.recipe import load_recipe
from rpam_lite.streaming.shapes import config_of_shape, shape_of_hub_id
from rpam_lite.streaming.skeleton import Skeleton

RECIPES = Path(__file__).parents[1] / "recipes"
# The lines between these two are ours.
BEGIN, END = "# What `rpam plan", "# (`python -m bench.recipes` writes these lines.)"
CARDS = ("8 GB", "12 GB", "24 GB", "CPU")
RESIDENT = 400 << 20
_WIDTHS = (6, 13, 20, 9, 9, 9, 9, 7)
_HEADS = ("card", "layers", "hidden states", "device", "host", "disk", "moved", "a step")


def real_recipes() -> list[Path]:
    """The recipes for real pairs."""
    return sorted(file for file in RECIPES.glob("*.yaml") if file.stem != "tiny")


def plan_lines(file: Path) -> list[str]:
    """The lines of a recipe's header that tell what it needs, as comments."""
    recipe = load_recipe(file)
    shape = shape_of_hub_id(str(recipe.parents.short))
    assert shape is not None, recipe.parents.short
    host = (16 if _values(config_of_shape(shape)) < 3e9 else 32) << 30
    plans = plan_cards(recipe, shape, None, None, host, resident=RESIDENT)
    assert plans.whole_run is not None
    table = [_line(_HEADS), *(_line(cells) for cells in plans.rows() if cells[0] in CARDS)]
    asked = f"{plans.questions} questions of {plans.tokens} tokens"
    return [
        f"{BEGIN} recipes/{file.name} --host {host >> 30}GiB` says of {asked}:",
        *table,
        f"# A step is one gradient of the fit: arithmetic for {recipe.threads} CPU threads and a card of 20 TFLOPS,",
        "# not measured; a fit takes some 10 to 30. Labelling comes before it and mostly takes longer.",
        f"# Disk of a whole run: {size_text(plans.whole_run.disk)}, and both parents in the hub's cache.",
        END,
    ]


def _line(cells: Any) -> str:
    if len(cells) == 2:
        return f"#   {cells[0]:6} {cells[1]}"
    left = zip(cells[:3], _WIDTHS, strict=False)
    right = zip(cells[3:], _WIDTHS[3:], strict=True)
    return "#   " + " ".join([*(f"{c:{w}}" for c, w in left), *(f"{c:>{w}}" for c, w in right)])


def _values(config: Any) -> int:
    return sum(prod(shape) for shape in Skeleton(config).tensors().values())


def with_plan(text: str, lines: list[str]) -> str:
    """The recipe with these lines in place of those that it has."""
    return re.sub(rf"^{re.escape(BEGIN)}.*?^{re.escape(END)}$", "\n".join(lines), text, flags=re.S | re.M)


def outdated() -> Iterator[tuple[Path, str]]:
    """Recipes whose header is not what the planner says now, and what it should be."""
    for file in real_recipes():
        text = file.read_text(encoding="utf-8")
        if (new := with_plan(text, plan_lines(file))) != text:
            yield file, new


if __name__ == "__main__":
    for path, new_text in list(outdated()):
        write_text(path, new_text)
        print(path)
