"""The model card names both parents and what differed, without this machine's paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from rpam_lite.preflight import check
from rpam_lite.recipe import load_recipe
from rpam_lite.report.card import card
from tests.conftest import ROOT

ORIGIN = {
    "version": "0.1",
    "method": "rpam",
    "long": {"name": "R1", "sha256": "a" * 64},
    "short": {"name": "Math", "sha256": "b" * 64},
    "donor": "long",
    "dtype": "float16",
}


def test_the_card_lists_what_differed(pair: Path, edit_json: Callable[..., None]) -> None:
    raw = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text())
    raw["parents"] = {"long": str(pair / "long"), "short": str(pair / "short")}
    for section in ("label", "eval"):
        raw[section]["questions"] = str(ROOT / "recipes" / raw[section]["questions"])
    (pair / "mine.yaml").write_text(yaml.safe_dump(raw))
    edit_json(pair / "short" / "config.json", max_position_embeddings=4096)
    recipe = load_recipe(pair / "mine.yaml")
    text = card(recipe, ORIGIN, [vars(f) for f in check(recipe, pair / "runs")])
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == ["R1", "Math"]
    assert "merge" in front["tags"]
    assert "- `context`: long and short: `max_position_embeddings` is 512 and 4096. The merge: keeps 512" in text
    assert str(pair) not in text
    assert "None." in card(recipe, ORIGIN, [])
