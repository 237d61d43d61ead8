"""What the shell offers for recipes and run folders."""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

from rpam_lite.checkpoint.files import is_run_folder


def recipes_and_runs(incomplete: str) -> list[str]:
    """Names of the recipes that ship with us, recipe files, and run folders."""
    from rpam_lite.recipe import shipped_folder

    names = sorted(file.stem for file in shipped_folder().glob("*.yaml"))
    files = [*_found(incomplete, "*.yaml"), *_found(incomplete, "*.yml"), *_found(incomplete, "*/*.yaml")]
    recipes = [file for file in files if not is_run_folder(Path(file).parent)]
    return [*(name for name in names if name.startswith(incomplete)), *recipes, *run_folders(incomplete)]


def run_folders(incomplete: str) -> list[str]:
    """Folders that a run of ours made, as deep as those in `runs/`."""
    found = [*_found(incomplete, "*"), *_found(incomplete, "*/*")]
    return sorted(folder for folder in found if is_run_folder(Path(folder)))


def _found(incomplete: str, ending: str) -> list[str]:
    """What begins as the user typed it and ends as the pattern does."""
    folder, begun = os.path.split(incomplete)
    base = Path(folder or ".")
    return sorted(str(Path(folder, path.relative_to(base))) for path in base.glob(escape(begun) + ending))
