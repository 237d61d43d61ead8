"""What a recipe names by its id on the hub, parents and data sets, brought to this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.hub import fetch, fetch_headers, in_cache, is_hub_id, missing_bytes
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.questions import FOLDER, with_questions
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


def downloaded(recipe: Recipe, run_folder: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe with its hub parents in the hub's cache, and its data sets as files of the run folder.

    The parents are checked first, without their weights.

    Raises:
        RpamError: As `fetch` and `with_questions`; or the check found an error, and no weights were downloaded.
    """
    recipe = with_questions(recipe, run_folder / FOLDER, run_folder / FOLDER, say)
    missing = {name: missing_bytes(hub_id) for name, hub_id in on_hub(recipe).items()}
    if any(missing.values()):
        errors = [f for f in findings_of(recipe, run_folder) if f.level == "ERROR"]
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
    """Preflight's findings, of hub parents on their headers and small files.

    What can't be had, of parents and data sets, is told all at once, and then nothing else.
    """
    from rpam_lite.preflight import check
    from rpam_lite.preflight.findings import attempt

    missing: list[Finding] = []
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        parents = {
            name: attempt(missing, "hub", partial(fetch_headers, hub_id, place))
            for name, hub_id in on_hub(recipe).items()
        }
        draw = partial(with_questions, recipe, run_folder / FOLDER, place / FOLDER, lambda text: None)
        ready = attempt(missing, "questions", draw)
        if missing or ready is None:
            return missing
        findings = check(_replaced(ready, {n: p for n, p in parents.items() if p is not None}), run_folder)
        return [f.without(f"{place}{os.sep}") for f in findings]


def _replaced(recipe: Recipe, folders: dict[str, Path]) -> Recipe:
    return recipe.model_copy(update={"parents": recipe.parents.model_copy(update=folders)})
