"""JSON Schemas of what people write and other programs read, from the models that check it.

python -m rpam_lite.schemas docs/schema     write all of them into a folder
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rpam_lite.checkpoint.files import write_json
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


def write_schemas(folder: Path) -> None:
    """Write every schema as FOLDER/NAME.json."""
    for name in NAMES:
        write_json(folder / f"{name}.json", schema_of(name))


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
