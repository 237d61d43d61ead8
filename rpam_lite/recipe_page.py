"""The tables of docs/recipe.md: every key of a recipe, from the model itself. `rpam_lite.schemas` writes them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from rpam_lite.recipe import Recipe, Release

BEGIN, END = "<!-- keys: from here on written by rpam_lite.schemas -->", "<!-- keys: to here -->"


def with_tables(page: str) -> str:
    """The page with the tables as they must be, between the two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{recipe_tables()}\n\n{END}{rest.partition(END)[2]}"


def recipe_tables() -> str:
    """One table a section of the recipe."""
    sections: dict[str, type[BaseModel]] = {}
    for name, field in Recipe.model_fields.items():
        if section := _section(field.annotation):
            sections[name] = section
    top = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    tables = [_table("The recipe itself", "", top)]
    sections["fit.release"] = Release
    for name, kind in sections.items():
        tables.append(_table(f"`{name}`", inspect.getdoc(kind) or "", kind.model_fields))
    return "\n\n".join(tables)


def _section(kind: Any) -> type[BaseModel] | None:
    """The model of a key that holds keys itself."""
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(title: str, text: str, fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{n}` | {_kind(f)} | {_default(f)} | {f.description or ''} |".replace("  |", " |")
        for n, f in fields.items()
    ]
    return "\n".join(
        [f"## {title}\n", *([f"{text}\n"] if text else []), "| key | value | default | |", "|---|---|---|---|", *rows]
    )


def _kind(field: FieldInfo) -> str:
    return "size" if _is_size(field.metadata) else _words(field.annotation)


def _is_size(metadata: Sequence[Any]) -> bool:
    """Sizes such as 6GiB are whole numbers to Python."""
    return any(isinstance(note, WithJsonSchema) for note in metadata)


def _words(kind: Any) -> str:
    """A type as a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(k) for k in inner if k is not type(None))
    if origin is tuple:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"table of {_words(inner[1])}"
    if hasattr(kind, "__metadata__"):
        return "size" if _is_size(kind.__metadata__) else _words(inner[0])
    if section := _section(kind):
        return "table of " + ", ".join(f"`{name}`" for name in section.model_fields)
    named = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Path": "path"}
    return named[kind.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    value = field.default
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, BaseModel):
        return "those of its keys"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return (
        f"`{list(value)}`" if isinstance(value, tuple) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    )
