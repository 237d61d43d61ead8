"""The fit stage in several processes, each with its share of the calibration set.

    torchrun --nproc-per-node 2 -m rpam_lite.fit recipes/tiny.yaml

The first process does what `rpam fit` does; the others lend a hand. Only vectors of lambda's length
are exchanged, so that several machines work as well as several GPUs of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rpam_lite.checkpoint.files import locked
from rpam_lite.pipeline.fitting import run_fit
from rpam_lite.pipeline.opening import keep_recipe
from rpam_lite.pipeline.parents import downloaded
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import run_one
from rpam_lite.recipe import load_recipe
from rpam_lite.terminal import fail_in_one_sentence


class Quiet:
    """No progress bars: several processes share one terminal."""

    def start(self, what: str, total: int) -> Callable[[str], None]:
        """Begin a task."""
        return lambda note: None


def fit(
    recipe: Path, runs: Annotated[Path, typer.Option(help="folder that holds the run folders")] = Path("runs")
) -> None:
    """Run the fit stage of RECIPE in all processes that torchrun started."""
    named = load_recipe(recipe)
    loaded = downloaded(named, runs / named.name, print)
    folder = runs / loaded.name
    if os.environ.get("RANK", "0") == "0":
        with locked(folder / ".lock", str(folder)):
            keep_recipe(named, folder)
            run_one("fit", Run(loaded, folder, Quiet(), print))
    else:
        run_fit(Run(loaded, folder, Quiet(), lambda text: None))


if __name__ == "__main__":
    fail_in_one_sentence(lambda: typer.run(fit))
