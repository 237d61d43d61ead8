"""The table of calibration sizes: its means, its spread, its draws, and the recipe of each granularity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.calibration import Form, drawn, open_run, with_granularity
from bench.calibration_table import table
from recipes.tiny.splits import LEVELS
from rpam_lite.errors import RpamError
from rpam_lite.recipe import load_recipe
from tests.conftest import ROOT


def cell(
    size: int, draw: int, gain: float, low: float, granularity: str = "row", member: str = "budget 80 %"
) -> dict[str, Any]:
    return {
        "size": size,
        "draw": draw,
        "granularity": granularity,
        "member": member,
        "execution": -0.01 * draw,
        "below_long": [0.01, 0.02 + 0.02 * draw],
        "loss": [2.0, 1.0 + draw],
        "promised": {"accuracy": 0.6, "tokens": 51.0 + draw},
        "tokens": 50.0 + 10 * draw,
        "accuracy": 0.7,
        "gain": gain,
        "low": low,
    }


def test_draws_of_one_size_granularity_and_member_are_one_line() -> None:
    found = [
        cell(32, 0, 0.02, 0.01),
        cell(32, 0, 0.09, 0.05, "layer"),
        cell(32, 1, 0.05, -0.01),
        cell(32, 0, 0.01, 0.0, member="within 2 points"),
        cell(128, 0, -0.01, -0.03),
    ]
    lines = table(found).splitlines()[2:]
    assert lines[0] == (
        "| 32 | one a row | budget 80 % | 1.500 | 60.0 at 51.5 | 55.0 ± 7.1 | 70.0 | 1.0 | 3.0 ± 1.4 "
        "| -0.5 | +3.5 | ± 2.1 | +2.0 to +5.0 | 1 of 2 |"
    )
    assert lines[1].startswith("| 32 | one a layer | budget 80 % | 1.000 |")
    assert lines[2].startswith("| 32 | one a row | within 2 points |")
    assert lines[3].endswith("| 50.0 ± - | 70.0 | 1.0 | 2.0 ± - | +0.0 | -1.0 | ± - | -1.0 to -1.0 | 0 of 1 |")
    assert len(lines) == 4


def test_a_draw_takes_as_many_of_every_level() -> None:
    rows = [{"key": str(i), "level": 1 + i % 4} for i in range(40)]
    found = drawn(rows, 12, draw=0)
    assert [sum(row["level"] == level for row in found) for level in (1, 2, 3, 4)] == [3, 3, 3, 3]
    assert found == [row for row in rows if row in found]
    assert found == drawn(rows, 12, draw=0) != drawn(rows, 12, draw=1)
    for size in (3, 44):
        with pytest.raises(RpamError, match=f"--sizes {size}: 4 levels have 10 questions"):
            drawn(rows, size, draw=0)


def test_each_granularity_keeps_the_other_settings(tmp_path: Path) -> None:
    dial, penalty = {"budgets": [0.8, 0.6], "points": [2.0]}, {"ridge": 0.1, "smoothness": 0.0}
    form = Form((32,), 16, 1, ("row",), dial, penalty, pool=2, per_level=1)
    run = open_run(ROOT / "recipes/tiny", tmp_path, form, None)
    pool = run.recipe.label.file.read_text(encoding="utf-8").splitlines()
    assert len(pool) == 2 * len(LEVELS)
    shipped = load_recipe(ROOT / "recipes/tiny.yaml")
    assert run.recipe.label.samples == shipped.label.samples
    assert (run.recipe.capture.questions_per_class, run.recipe.family.questions) == (16, 0)
    assert [setting.value for setting in run.recipe.family.settings] == [0.8, 0.6, 2.0]
    assert with_granularity(run.recipe, "low_rank-4").fit.rank == 4
    low_rank = with_granularity(run.recipe, "low_rank").fit
    assert (low_rank.granularity, low_rank.start, low_rank.ridge) == ("low_rank", shipped.fit.start, 0.1)
