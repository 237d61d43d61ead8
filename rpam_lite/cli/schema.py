"""`rpam schema`: what a file must look like, for editors and other programs."""

import json
from typing import Annotated

import typer

from rpam_lite.cli.common import app


@app.command("schema")
def schema_command(
    name: Annotated[str, typer.Argument(help="recipe, coefficients, record or finding")] = "recipe",
) -> None:
    """Print the JSON Schema of a recipe, or of a file of a run.

    Example: rpam schema recipe > recipe.schema.json
    """
    from rpam_lite.schemas import schema_of

    print(json.dumps(schema_of(name), indent=2, ensure_ascii=False))
