"""Which commands `rpam --help` shows together, and in which order."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

PANELS = {
    "The trip": ("init", "recipes", "check", "plan", "run"),
    "One stage alone": (
        *("label", "capture", "fit", "statistics", "merge", "export", "imatrix"),
        *("quantize", "divergence", "eval", "report"),
    ),
    "Look": ("status", "compare", "verify", "grade", "methods", "schema", "clean"),
    "Use elsewhere": ("chat", "ollama", "publish"),
}
_PLACES = {name: panel for panel, names in PANELS.items() for name in names}
_ORDER = list(_PLACES)

EXIT_CODES = {
    0: "done",
    1: "an error, named in one sentence",
    2: "wrong usage",
    3: "check found a WARNING, and nothing worse",
    130: "interrupted with Ctrl-C",
}


class Panels(TyperGroup):
    """The commands of `rpam`, in their panels."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = dict(sorted(self.commands.items(), key=lambda item: place(item[0])))
        for name, command in self.commands.items():
            if isinstance(command, TyperCommand | TyperGroup):
                command.rich_help_panel = _PLACES.get(name)


def place(name: str) -> int:
    """Where a command stands; behind all others if it has no place."""
    return _ORDER.index(name) if name in _PLACES else len(_ORDER)


def epilog() -> str:
    """The exit codes, in one line."""
    return f"Exit codes: {'; '.join(f'{code} {what}' for code, what in EXIT_CODES.items())}. More: docs/cli.md"
