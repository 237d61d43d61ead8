"""Recipes: defaults, and all mistakes named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe, load_recipe
from tests.conftest import ROOT

MINIMAL = {
    "version": 1,
    "name": "mine",
    "parents": {"long": "l", "short": "s"},
    "label": {"questions": "c.jsonl"},
    "eval": {"questions": "e.jsonl"},
}


def write(tmp_path: Path, **changes: object) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes), encoding="utf-8")
    return file


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.parents.long == tmp_path / "l"
    assert recipe.eval.questions == tmp_path / "e.jsonl"
    assert recipe.fit.granularity == "layer"


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, fit={"steps": 0, "granulrity": "layer"}, merge={"dtype": "float8"}, extra=1)
    with pytest.raises(RpamError) as caught:
        load_recipe(file)
    message = str(caught.value)
    for part in (str(file), "`fit.steps` is 0", "unknown key `fit.granulrity`", "'float8'", "unknown key `extra`"):
        assert part in message


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([0.0, 0.5], "greater than 0"),
        ([0.5, 1.0], "less than 1"),
        ([0.3333333, 0.33333331], "two lambdas are the same in their first six digits"),
    ],
)
def test_the_scalar_curve_lies_between_the_parents(tmp_path: Path, weights: list[float], says: str) -> None:
    file = write(tmp_path, eval={"questions": "e.jsonl", "scalar_curve": weights})
    with pytest.raises(RpamError, match=says):
        load_recipe(file)


def test_hidden_states_are_read_by_some_objectives_alone(tmp_path: Path) -> None:
    def reads(**changes: object) -> bool:
        return load_recipe(write(tmp_path, **changes)).reads_hidden_states

    assert not reads()
    assert all(reads(fit=fit) for fit in ({"alignment_weight": 0.1}, {"contrastive_weight": 1}, {"preset": "paper"}))
    assert reads(fit={"sequential": True})
    assert reads(merge={"method": "acm"})


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- 1", "holds no recipe")])
def test_what_is_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RpamError, match=says):
        load_recipe(file)


def test_the_shipped_recipe_is_found_by_name() -> None:
    assert load_recipe(Path("tiny")) == load_recipe(ROOT / "recipes" / "tiny.yaml")
    assert isinstance(load_recipe(Path("tiny")), Recipe)
    with pytest.raises(RpamError, match="no such recipe file"):
        load_recipe(Path("tinny"))


@pytest.mark.parametrize("preset", ["adamerging", "release"])
@pytest.mark.parametrize("dial", [{"prices": [0, 100]}, {"max_points_below_long": 0.0, "questions": 0}])
def test_a_dial_is_refused_where_no_label_is_weighed(tmp_path: Path, preset: str, dial: dict[str, Any]) -> None:
    file, key = write(tmp_path, fit={"preset": preset}, dial=dial), next(iter(dial))
    with pytest.raises(RpamError, match=rf"mine\.yaml: `dial\.{key}` is not read under `fit\.preset: {preset}`"):
        load_recipe(file)


def test_a_fit_for_each_price_is_chosen_by_measuring(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, dial={"budgets": [0.5], "questions": 0})).family.questions == 0
    with pytest.raises(RpamError, match=r"yaml: `dial`: `questions` 0 needs `by: decision`"):
        load_recipe(write(tmp_path, dial={"by": "fit", "prices": [1], "questions": 0}))


def test_a_mistake_of_a_whole_section_names_it_and_does_not_print_it(tmp_path: Path) -> None:
    file = write(tmp_path, dial={"by": "fit", "budgets": [0.5]})
    with pytest.raises(RpamError, match=r"yaml: `dial`: `budgets` needs `by: decision`"):
        load_recipe(file)
