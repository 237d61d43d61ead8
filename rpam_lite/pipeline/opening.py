"""Run folders: where a recipe's lies, the copy of the recipe in it, and opening one only to look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from rpam_lite.checkpoint.files import RUN_RECIPE, is_run_folder, locked, write_text
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.parents import cached
from rpam_lite.pipeline.questions import FOLDER, with_kept
from rpam_lite.pipeline.stage import Run
from rpam_lite.recipe import Recipe, load_recipe, with_device_memory
from rpam_lite.run_files import LOCK


def folder_of(given: Path, runs: Path, recipe: Recipe) -> Path:
    """The run folder: what was given, if it is one, else that of the recipe below `runs`."""
    return given if is_run_folder(given) else runs / recipe.name


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the recipe into its run folder, paths absolute, so that the folder can be opened by itself."""
    told = yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    text = f"# The recipe of this run as it was last worked on; what it does not name stands at its default.\n{told}"
    file = folder / RUN_RECIPE
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)


def opened(given: Path, runs: Path, device_memory: str | None = None) -> Run:
    """A run to look at: nothing is downloaded, written or locked.

    Args:
        given: A recipe or a run folder.
        runs: Folder of the run folders.
        device_memory: As `with_device_memory`.

    Raises:
        RpamError: As `load_recipe`; or `given` is a folder without a recipe.
    """
    recipe = with_device_memory(load_recipe(given), device_memory)
    folder = folder_of(given, runs, recipe)
    return Run(with_kept(cached(recipe), folder / FOLDER), folder, Silent(), mute)


def again(command: str, given: Path, runs: Path) -> str:
    """The command line that does something to the same run."""
    where = "" if runs == Path("runs") or is_run_folder(given) else f" --runs {runs}"
    return f"rpam {command} {given}{where}"


def is_worked_on(folder: Path) -> bool:
    """Whether another process holds the lock of a run folder."""
    file = folder / LOCK
    if not file.exists():
        return False
    try:
        with locked(file, str(folder)):
            return False
    except RpamError:
        return True


class Silent:
    """Shows no progress."""

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """Begin a task of which nothing is shown."""
        return mute


def mute(text: object) -> None:
    """Say nothing."""
