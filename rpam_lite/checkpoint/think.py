"""The marks of a think block, and whether a prompt leaves one open."""

from __future__ import annotations

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def ends_in_open_block(prompt: str) -> bool:
    """Whether a prompt's last characters open a think block; marks that an instruction only names do not count."""
    return prompt.rstrip().endswith(THINK_OPEN)


def names_block(template: str) -> bool:
    """Whether a chat template names both marks, by which programs tell that a model thinks."""
    return THINK_OPEN in template and THINK_CLOSE in template
