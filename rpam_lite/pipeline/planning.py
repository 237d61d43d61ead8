"""`rpam plan`: which way of working fits which card, from configs alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from rpam_lite.checkpoint.files import size_text
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.parents import with_headers
from rpam_lite.platform import free_memory, resident_memory
from rpam_lite.recipe import Recipe
from rpam_lite.streaming.plan import Budget, Plan, choose, model_size
from rpam_lite.streaming.plan_table import UNLIMITED, plan_table
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.streaming.skeleton import Skeleton, load_config
from rpam_lite.streaming.work import estimated_work

CARDS = (8, 12, 16, 24)
# What a card's own display, driver and torch's context take away from it.
_USABLE = 0.9


def plan_cards(
    recipe: Recipe | None, shape: str | None, questions: int, tokens: int, host: int | None
) -> tuple[Table, str]:
    """The best way of working on cards of 8, 12, 16 and 24 GB, and that on the CPU.

    Args:
        recipe: Its `parents.short` gives the config, its `memory` the budget and codec.
        shape: Name of a well-known model instead of a checkpoint.
        questions: Questions in the calibration set.
        tokens: Prompt and response of each; half of them are taken for the response.
        host: Host memory in bytes; what is free without it.

    Returns:
        The table of cards, and the plan in full for the smallest card that works.

    Raises:
        RpamError: Neither recipe nor shape, or not even the largest card works.
    """
    if shape is not None:
        config, title = config_of_shape(shape), shape
    elif recipe is not None:
        with TemporaryDirectory() as place:
            folder = _config_folder(with_headers(recipe, Path(place)))
            config, title = load_config(folder), str(folder).removeprefix(f"{place}/")
    else:
        raise RpamError("`rpam plan` needs a recipe, or --shape with the name of a well-known model.")
    memory = recipe.memory if recipe else None
    work = estimated_work(recipe, questions, tokens)
    model = model_size(Skeleton(config))
    codec = None if memory is None or memory.codec == "auto" else memory.codec
    host_bytes = host or (memory.host if memory else None) or resident_memory() + free_memory()
    disk = (memory.disk if memory else None) or UNLIMITED
    table = Table(title=f"{title}: {questions} questions of {tokens} tokens, host {size_text(host_bytes)}")
    for column in ("card", "layers", "hidden states", "device peak", "host peak", "disk", "moved a step"):
        table.add_column(column, justify="left" if column in ("card", "layers", "hidden states") else "right")
    full = ""
    for name, device in [*((f"{gb} GB", int(_USABLE * gb * 10**9)) for gb in CARDS), ("CPU", None)]:
        budget = Budget(device, host_bytes, disk)
        try:
            plan = choose(model, work, budget, codec, resident_memory())
        except RpamError as error:
            table.add_row(name, str(error).split(": ", 1)[-1].split(". Raise")[0])
            continue
        table.add_row(name, *_cells(plan))
        full = full or plan_table(plan, budget)
    return table, full


def _config_folder(recipe: Recipe) -> Path:
    """Where the recipe's config lies: with the Short parent, or the base of an adapter."""
    for folder in (recipe.parents.short, recipe.parents.long, recipe.parents.base):
        if folder is not None and (folder / "config.json").exists():
            return folder
    raise RpamError(f"{recipe.parents.short}: has no config.json; download that file, or plan with --shape.")


def _cells(plan: Plan) -> list[str]:
    way = plan.way
    peaks = [size_text(plan.total(place)) for place in ("device", "host", "disk")]
    return [f"{way.codec}, {way.residency}", f"{way.store}, {way.micro_tokens} tokens", *peaks, size_text(plan.moved)]
