"""The fit stage in several processes, each with its share of the calibration set.

    torchrun --nproc-per-node 2 -m rpam_lite.fit recipes/tiny.yaml

The first process does what `rpam fit` does; the others lend a hand. Only vectors of lambda's length
are exchanged, so that several machines work as well as several GPUs of one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rpam_lite.checkpoint.files import locked
from rpam_lite.pipeline.fitting import run_fit
from rpam_lite.pipeline.opening import Silent, folder_of, keep_recipe, mute
from rpam_lite.pipeline.parents import downloaded
from rpam_lite.pipeline.questions import FOLDER, with_kept
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import run_one
from rpam_lite.recipe import load_recipe
from rpam_lite.run_files import LOCK
from rpam_lite.terminal import fail_in_one_sentence


def fit(
    recipe: Path, runs: Annotated[Path, typer.Option(help="folder that holds the run folders")] = Path("runs")
) -> None:
    """Run the fit stage of RECIPE in all processes that torchrun started."""
    named = load_recipe(recipe)
    folder = folder_of(recipe, runs, named)
    if os.environ.get("RANK", "0") == "0":
        with locked(folder / LOCK, str(folder)):
            keep_recipe(named, folder)
            run_one("fit", Run(downloaded(named, folder, print), folder, Silent(), print))
    else:
        # The questions are the first process's to draw.
        loaded = downloaded(with_kept(named, folder / FOLDER), folder, mute)
        run_fit(Run(loaded, folder, Silent(), mute))


if __name__ == "__main__":
    fail_in_one_sentence(lambda: typer.run(fit))
