"""Parents that a recipe names by their id on the hub, brought to this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.hub import fetch, fetch_headers, in_cache, is_hub_id, missing_bytes
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe

if TYPE_CHECKING:
    from rpam_lite.preflight.findings import Finding

_NAMES = ("long", "short", "base")


def on_hub(recipe: Recipe) -> dict[str, str]:
    """Hub ids by parent."""
    return {
        name: str(path) for name in _NAMES if (path := getattr(recipe.parents, name)) is not None and is_hub_id(path)
    }


def with_headers(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with everything of its hub parents but the weights, which are put into `folder`.

    Raises:
        RpamError: As `fetch_headers`.
    """
    return _replaced(recipe, {name: fetch_headers(hub_id, folder) for name, hub_id in on_hub(recipe).items()})


def downloaded(recipe: Recipe, runs: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe with its hub parents in the hub's cache; first they are checked without their weights.

    Raises:
        RpamError: As `fetch`; or the check found an error, and nothing was downloaded.
    """
    missing = {name: missing_bytes(hub_id) for name, hub_id in on_hub(recipe).items()}
    if any(missing.values()):
        errors = [f for f in findings_of(recipe, runs / recipe.name) if f.level == "ERROR"]
        for finding in errors:
            say(str(finding))
        if errors:
            raise RpamError(f"{len(errors)} errors above; nothing was downloaded.")
    folders = {name: fetch(hub_id, missing[name], say) for name, hub_id in on_hub(recipe).items()}
    return _replaced(recipe, folders)


def cached(recipe: Recipe) -> Recipe:
    """The recipe with those of its hub parents that are in the hub's cache; nothing is asked or downloaded."""
    folders = {name: in_cache(hub_id) for name, hub_id in on_hub(recipe).items()}
    return _replaced(recipe, {name: folder for name, folder in folders.items() if folder is not None})


def findings_of(recipe: Recipe, run_folder: Path) -> list[Finding]:
    """Preflight's findings, of hub parents on their headers and small files."""
    from rpam_lite.preflight import check

    if not on_hub(recipe):
        return check(recipe, run_folder)
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        findings = check(with_headers(recipe, place), run_folder)
        return [f.without(f"{place}{os.sep}") for f in findings]


def _replaced(recipe: Recipe, folders: dict[str, Path]) -> Recipe:
    return recipe.model_copy(update={"parents": recipe.parents.model_copy(update=folders)})
