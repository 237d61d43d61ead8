"""Run by mkdocs (mkdocs.yml, `hooks`): writes the tables of recipe.md from the recipe's own model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from rpam_lite.recipe import Recipe, Release

MARK = "<!-- recipe keys -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the tables in the place of the mark."""
    return markdown.replace(MARK, recipe_tables()) if MARK in markdown else markdown


def recipe_tables() -> str:
    """One table a section of the recipe."""
    top = {n: f for n, f in Recipe.model_fields.items() if not _is_section(f)}
    sections = [("The recipe itself", "", top)]
    for name, field in Recipe.model_fields.items():
        if _is_section(field):
            sections.append((f"`{name}`", inspect.getdoc(field.annotation), field.annotation.model_fields))
    sections.append(("`fit.release`", inspect.getdoc(Release), Release.model_fields))
    return "\n\n".join(_table(*section) for section in sections)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _table(title: str, text: str, fields: dict[str, FieldInfo]) -> str:
    rows = [f"| `{n}` | {_kind(f)} | {_default(f)} | {f.description or ''} |" for n, f in fields.items()]
    return "\n".join([f"## {title}\n\n{text}\n", "| key | value | default | |", "|---|---|---|---|", *rows])


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
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "table of " + ", ".join(f"`{name}`" for name in kind.model_fields)
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
