"""The table of calibration sizes: its means, its spread, and the recipe of each granularity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.calibration import Form, open_run, table, with_fit
from recipes.tiny.splits import LEVELS
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT


def cell(size: int, draw: int, gain: float, low: float, granularity: str = "row") -> dict[str, Any]:
    return {
        "size": size,
        "draw": draw,
        "granularity": granularity,
        "questions": size - draw,
        "numbers": 7,
        "loss": [2.0, 1.0 + draw],
        "tokens": 50.0 + 10 * draw,
        "accuracy": 0.7,
        "gain": gain,
        "low": low,
    }


def test_draws_of_one_size_and_granularity_are_one_line() -> None:
    found = [
        cell(32, 0, 0.02, 0.01),
        cell(32, 0, 0.09, 0.05, "layer"),
        cell(32, 1, 0.05, -0.01),
        cell(128, 0, -0.01, -0.03),
    ]
    lines = table(found).splitlines()[2:]
    assert lines[0] == "| 32 | row | 7 | 1.500 | 55.0 | 70.0 | +3.5 | 2.1 | +2.0 to +5.0 | 1 of 2 |"
    assert lines[1].startswith("| 32 | layer | 7 |")
    assert lines[2].endswith("| -1.0 | - | -1.0 to -1.0 | 0 of 1 |")
    assert len(lines) == 3


def test_each_granularity_keeps_the_other_settings(tmp_path: Path) -> None:
    form = Form((32,), 1, ("row",), pool=2, per_level=1, fit={"long_weight": 0.2})
    run = open_run(ROOT / "recipes/tiny", tmp_path, form, None)
    pool = run.recipe.label.file.read_text(encoding="utf-8").splitlines()
    assert len(pool) == 2 * len(LEVELS)
    assert (run.recipe.label.samples, run.recipe.label.temperature) == (1, 0.0)
    low_rank = with_fit(run.recipe, "low_rank").fit
    assert (low_rank.granularity, low_rank.long_weight) == ("low_rank", 0.2)
    assert low_rank.start == load_recipe(ROOT / "recipes/tiny.yaml").fit.start
