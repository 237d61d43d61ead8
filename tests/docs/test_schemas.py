"""The committed JSON Schemas are those of the models, and the recipe's page tells every key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe
from rpam_lite.recipe_page import recipe_tables, with_tables
from rpam_lite.schemas import NAMES, schema_of
from tests.conftest import ROOT

UPDATE = "run: python -m rpam_lite.schemas docs"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_schema_is_current(name: str) -> None:
    committed = json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text(encoding="utf-8"))
    assert committed == schema_of(name), UPDATE


def test_there_is_no_other_schema() -> None:
    with pytest.raises(RpamError, match="nonsense: there is no such schema; there are recipe"):
        schema_of("nonsense")
    assert {file.stem for file in (ROOT / "docs" / "schema").iterdir()} == set(NAMES)


def test_the_schema_knows_what_recipes_use() -> None:
    """Editors would mark a right recipe as wrong otherwise."""
    schema = schema_of("recipe")
    sizes = [schema["$defs"]["Merge"]["properties"]["shard_size"]]
    sizes += [schema["$defs"]["Memory"]["properties"][key]["anyOf"][0] for key in ("device", "host", "disk")]
    assert all(size["type"] == ["integer", "string"] for size in sizes)
    for file in (ROOT / "recipes").glob("*.yaml"):
        _check(yaml.safe_load(file.read_text(encoding="utf-8")), schema, schema, file.name)


def _check(value: Any, schema: Any, whole: Any, place: str) -> None:
    """The part of JSON Schema that recipes need: references, keys, and what must be there."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict) and "properties" in schema:
        assert value.keys() <= schema["properties"].keys(), place
        assert set(schema.get("required", ())) <= value.keys(), place
        for key, inner in value.items():
            _check(inner, schema["properties"][key], whole, f"{place}: {key}")
    if "enum" in schema:
        assert value in schema["enum"], place


def test_the_recipes_page_has_a_row_for_every_key() -> None:
    tables = recipe_tables()
    for name, field in Recipe.model_fields.items():
        fields = getattr(field.annotation, "model_fields", None)
        for key in fields or [name]:
            assert f"| `{key}` |" in tables
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert with_tables(page) == page, UPDATE
    assert "| `device` | size | none |" in tables
    assert "| `granularity` | `scalar`, `layer`, `block`, `matrix`, `row`, `low_rank` | `layer` |" in tables
