"""`rpam recipes`: the recipes that come with us, and copies of them that still work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from rpam_lite.checkpoint.files import write_text
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe, find_recipe, load_recipe, shipped_folder

# Keys whose values are paths from the recipe's own folder, where such a file is there.
_PATHS = (("parents", "long"), ("parents", "short"), ("parents", "base"), ("label", "questions"), ("eval", "questions"))


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with us: its name, first comment line, parents as the file names them, and file."""

    name: str
    about: str
    long: str
    short: str
    file: str


def shipped() -> list[Shipped]:
    """All of them, by name."""
    return [_about(file) for file in sorted(shipped_folder().glob("*.yaml"))]


def recipe_text(name: Path) -> str:
    """The text of a recipe, its comments too.

    Raises:
        RpamError: There is none of that name.
    """
    return find_recipe(name).read_text(encoding="utf-8")


def copy_recipe(name: Path, file: Path) -> Recipe:
    """Copy a recipe: paths that would no longer be found become absolute, and its name becomes the file's.

    Args:
        name: A recipe that comes with us, or any other.
        file: Where to, with the ending .yaml.

    Returns:
        The copy.

    Raises:
        RpamError: There is no such recipe, `file` is there already, or its stem can't be a recipe's name.
    """
    source = find_recipe(name)
    if file.suffix not in (".yaml", ".yml"):
        raise RpamError(f"{file}: a recipe's name ends in .yaml.")
    if file.exists():
        raise RpamError(f"{file}: is there already; choose another name, or delete it first.")
    load_recipe(source)
    text = source.read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None  # it could be loaded
    changes = list(_moved(root, source.parent.resolve(), file.parent.resolve()))
    changes += [(node, file.stem) for node in _nodes(root, ("name",))]
    for node, new in sorted(changes, key=lambda change: -change[0].start_mark.index):
        text = text[: node.start_mark.index] + as_scalar(new) + text[node.end_mark.index :]
    # A reference to a schema beside the original is a comment, and would point nowhere.
    text = re.sub(r"^# yaml-language-server:.*\n", "", text, flags=re.M)
    write_text(file, text)
    try:
        return load_recipe(file)
    except RpamError:
        file.unlink()
        raise


def _moved(root: yaml.Node, before: Path, now: Path) -> Iterator[tuple[yaml.Node, str]]:
    """Paths that are relative to the old folder and not found from the new one."""
    for keys in _PATHS:
        for node in _nodes(root, keys):
            path = before / str(node.value)
            if path.exists() and not (now / str(node.value)).exists():
                yield node, str(path.resolve())


def _nodes(node: yaml.Node, keys: tuple[str, ...]) -> list[yaml.Node]:
    """The value at a place of the file; none where it is not given."""
    if not keys:
        return [node]
    if not isinstance(node, yaml.MappingNode):
        return []
    return [found for key, value in node.value if key.value == keys[0] for found in _nodes(value, keys[1:])]


def as_scalar(value: str) -> str:
    """A string as YAML writes it on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()


def _about(file: Path) -> Shipped:
    text = file.read_text(encoding="utf-8")
    parents = (yaml.safe_load(text) or {}).get("parents") or {}
    comments = [line.lstrip("# ").rstrip() for line in text.splitlines() if re.match(r"#(?! yaml-language)", line)]
    about = next(filter(None, comments), "")
    return Shipped(file.stem, about, str(parents.get("long", "")), str(parents.get("short", "")), str(file))
