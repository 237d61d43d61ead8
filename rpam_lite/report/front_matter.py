"""The YAML at the top of a README, which the hub reads: taken off a text, and put on one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

# As on the hub it ends at a line of its own: a value may hold dashes too.
_BLOCK = re.compile(r"\s*^---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)


def split(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest of a README; empty and the whole text where it has none that can be read."""
    if not (match := _BLOCK.match(text)):
        return {}, text
    try:
        front = yaml.safe_load(match[1]) or {}
    except (ValueError, yaml.YAMLError):
        return {}, text
    return (front, text[match.end() :]) if isinstance(front, dict) else ({}, text)


def joined(front: Mapping[str, object], body: str, comment: str = "") -> str:
    """A README of front matter, a comment in it for whoever edits it, and text."""
    told = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    note = f"# {comment}\n" if comment else ""
    return f"---\n{told}{note}---\n\n{body.strip()}\n"
