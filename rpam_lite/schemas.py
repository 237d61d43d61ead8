"""JSON Schemas of what people write and other programs read, from the models that check it.

python -m rpam_lite.schemas docs     bring docs/schema/ and the tables of docs/recipe.md up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rpam_lite.checkpoint.files import write_json, write_text
from rpam_lite.errors import RpamError

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES = ("recipe", "coefficients", "record", "finding")


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a recipe, of coefficients.json, of one line of a records file, or of one finding of `rpam check`.

    Raises:
        RpamError: There is none of this name.
    """
    return {"$schema": _DIALECT, **TypeAdapter(_model(name)).json_schema()}


def _model(name: str) -> Any:
    if name == "recipe":
        from rpam_lite.recipe import Recipe

        return Recipe
    if name == "coefficients":
        from rpam_lite.fit.coefficients import Coefficients

        return Coefficients
    if name == "record":
        from quant.records import Record

        return Record
    if name == "finding":
        from rpam_lite.preflight.findings import Finding

        return Finding
    raise RpamError(f"{name}: there is no such schema; there are {', '.join(NAMES)}.")


def write_schemas(docs: Path) -> None:
    """Write every schema as DOCS/schema/NAME.json, and the tables of DOCS/recipe.md."""
    from rpam_lite.recipe_page import with_tables

    for name in NAMES:
        write_json(docs / "schema" / f"{name}.json", schema_of(name))
    page = docs / "recipe.md"
    write_text(page, with_tables(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
