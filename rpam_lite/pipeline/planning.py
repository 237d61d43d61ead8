"""`rpam plan`: which way of working fits which card, from configs alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from rpam_lite.checkpoint.files import size_text
from rpam_lite.checkpoint.pair import open_parent, stored_bytes
from rpam_lite.errors import RpamError
from rpam_lite.fit.setup import with_coefficients
from rpam_lite.pipeline.parents import on_hub, with_headers
from rpam_lite.platform import free_memory, resident_memory
from rpam_lite.preflight.machine import bytes_by_stage
from rpam_lite.recipe import Fit, Recipe
from rpam_lite.streaming.choice import BudgetError, choose
from rpam_lite.streaming.plan import Budget, ModelSize, Plan, WorkSize, model_size
from rpam_lite.streaming.plan_table import UNLIMITED, plan_table
from rpam_lite.streaming.shapes import config_of_shape, shape_of_hub_id
from rpam_lite.streaming.skeleton import Skeleton, load_config
from rpam_lite.streaming.work import assumed_tokens, estimated_work, questions_of, traces_of

CARDS = (8, 12, 16, 24)
_STORED = 2  # bytes a parameter
# What a card's own display, driver and torch's context take away from it.
_USABLE = 0.9
# Of a gradient: forward, forward again when its layer is due, and back to inputs and to weights.
_OPERATIONS = 8  # a parameter and token
# The first two are assumed, for no card has been measured; the third is what docs/measurements.md gives.
_CARD_FLOPS, _CARD_BYTES, _CPU_FLOPS = 20e12, 12e9, 0.08e12  # a second; the last of one thread
_RATES = (
    "a step: arithmetic, 8 operations a parameter and token at 20 TFLOPS and 12 GB/s of a card (assumed), "
    "or 0.08 TFLOPS a CPU thread (measured on a Xeon); a fit takes some 10 to 30 steps, labelling comes before it"
)


@dataclass(frozen=True)
class CardPlan:
    """A card, or the CPU.

    Attributes:
        card: Its name.
        budget: What of it may be used.
        plan: The best way of working; None if none fits.
        why: Then what would.
        step_seconds: About how long one gradient takes.
    """

    card: str
    budget: Budget
    plan: Plan | None
    why: str = ""
    step_seconds: float = 0.0


@dataclass(frozen=True)
class WholeRun:
    """What a recipe's other stages take.

    Attributes:
        disk: Bytes of the run folder in the end, about.
        sampled: Answers that both parents give at most before the fit; None where the questions are not known yet.
        measured: Answers that `eval` asks for, of all its models; None likewise.
        models: How many models those are.
    """

    disk: int
    sampled: int | None
    measured: int | None
    models: int

    def text(self) -> str:
        """In a sentence."""
        sampled = "answers to all questions" if self.sampled is None else f"at most {self.sampled:,} answers"
        measured = "as many as there are questions" if self.measured is None else f"{self.measured:,} in all"
        return (
            f"the whole run: {size_text(self.disk)} of disk, and both parents in the hub's cache; before the fit "
            f"{sampled} to label, after it answers of {self.models} models to measure, {measured}. Those take longest."
        )


@dataclass(frozen=True)
class CardPlans:
    """The best way of working on every card, of one model and amount of work.

    Attributes:
        title: Of the model.
        questions: In the calibration set.
        tokens: Of each.
        host: Bytes of the host's memory.
        cards: One plan each.
        whole_run: Of a recipe, what its other stages take.
    """

    title: str
    questions: int
    tokens: int
    host: int
    cards: tuple[CardPlan, ...]
    whole_run: WholeRun | None = None

    def table(self) -> Table:
        """One row a card."""
        title = f"{self.title}: {self.questions} questions of {self.tokens} tokens, host {size_text(self.host)}"
        table = Table(title=title)
        for column in ("card", "layers", "hidden states", "device peak", "host peak", "disk", "moved a step", "a step"):
            table.add_column(column, justify="left" if column in ("card", "layers", "hidden states") else "right")
        for cells in self.rows():
            table.add_row(*cells)
        return table

    def rows(self) -> list[list[str]]:
        """The table's cells; a card on which nothing works has two, the second saying what would."""
        return [[c.card, *([*_cells(c.plan), _about(c.step_seconds)] if c.plan else [c.why])] for c in self.cards]

    def in_full(self) -> str:
        """How steps are counted, and what takes how much where on the smallest card that works."""
        full = next((f"{card.card}: {plan_table(card.plan, card.budget)}" for card in self.cards if card.plan), "")
        rest = f"{self.whole_run.text()}\n" if self.whole_run else ""
        return f"{_RATES}\n{rest}{full}"

    def as_json(self) -> dict[str, Any]:
        """One object, sizes in bytes; `plan` is null where nothing fits, and `why` says what would."""
        cards = [
            {
                "card": card.card,
                "plan": _plan_json(card.plan) if card.plan else None,
                "step_seconds": card.step_seconds if card.plan else None,
                "why": card.why or None,
            }
            for card in self.cards
        ]
        work = {"questions": self.questions, "tokens": self.tokens, "host": self.host}
        rest = vars(self.whole_run) if self.whole_run else None
        return {"version": 1, "model": self.title, **work, "cards": cards, "whole_run": rest}


def plan_cards(
    recipe: Recipe | None,
    shape: str | None,
    questions: int | None,
    tokens: int | None,
    host: int | None,
    device: int | None = None,
    resident: int | None = None,
) -> CardPlans:
    """The best way of working on cards of 8, 12, 16 and 24 GB, and that on the CPU.

    Args:
        recipe: Its `parents.short` gives the config, its `memory` the budget and codec.
        shape: Name of a well-known model instead of a checkpoint.
        questions: Questions in the calibration set; what the recipe asks for, or 128, without it.
        tokens: Prompt and response of each; half of them are taken for the response. What `assumed_tokens` says
            without it.
        host: Host memory in bytes; what is free without it.
        device: Bytes of a card's memory, to be planned for in the place of those cards; the recipe's `memory.device`
            without it.
        resident: Bytes of the host's memory that Python and its libraries take; what they take now without it.

    Raises:
        RpamError: Neither recipe nor shape; or the parents can't be read, and their shape is not known.
    """
    if shape is not None:
        config, title, stored = config_of_shape(shape), shape, _STORED
    elif recipe is not None:
        config, title, stored = _config_of(recipe)
    else:
        raise RpamError("`rpam plan` needs a recipe, or --shape with the name of a well-known model.")
    memory = recipe.memory if recipe else None
    questions = questions or (traces_of(recipe) if recipe else 128)
    tokens = tokens or assumed_tokens(recipe)
    skeleton = Skeleton(config)
    work = with_coefficients(estimated_work(recipe, questions, tokens), skeleton, recipe.fit if recipe else Fit())
    model = model_size(skeleton, stored)
    codec = memory.fixed_codec if memory else None
    host_bytes = host or (memory.host if memory else None) or resident_memory() + free_memory()
    disk = (memory.disk if memory else None) or UNLIMITED
    threads = recipe.threads if recipe else 2
    device = device or (memory.device if memory else None)
    sizes = [(f"{gb} GB", int(_USABLE * gb * 10**9)) for gb in CARDS]
    cards = []
    for name, usable in [*([(size_text(device), device)] if device else sizes), ("CPU", None)]:
        budget = Budget(usable, host_bytes, disk)
        try:
            plan = choose(model, work, budget, codec, resident or resident_memory())
        except BudgetError as error:
            cards.append(CardPlan(name, budget, None, error.needs))
            continue
        seconds = _step_seconds(model, work, plan, usable is not None, threads)
        cards.append(CardPlan(name, budget, plan, step_seconds=seconds))
    whole_run = _whole_run(recipe, skeleton) if recipe else None
    return CardPlans(title, questions, tokens, host_bytes, tuple(cards), whole_run)


def _whole_run(recipe: Recipe, skeleton: Skeleton) -> WholeRun:
    values = sum(prod(shape) for shape in skeleton.tensors().values())
    asked, measured = questions_of(recipe.label), questions_of(recipe.eval)
    members = max(0, len(recipe.family.settings) - 1)
    models = 2 + len(recipe.eval.scalar_curve) + 1 + len(recipe.quantize.types) + members
    return WholeRun(
        disk=sum(bytes_by_stage(values, skeleton.config, recipe).values()),
        sampled=None if asked is None else 2 * asked * recipe.label.samples,
        measured=None if measured is None else models * measured,
        models=models,
    )


def _step_seconds(model: ModelSize, work: WorkSize, plan: Plan, on_card: bool, threads: int) -> float:
    """How long one gradient on the whole calibration set takes, about."""
    head = model.vocabulary * model.hidden * work.targets
    operations = _OPERATIONS * (model.layers * model.layer_values * work.tokens + head)
    on_cpu = operations / (threads * _CPU_FLOPS)
    return max(operations / _CARD_FLOPS, plan.moved / _CARD_BYTES) if on_card else on_cpu


def _about(seconds: float) -> str:
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= 1.5 * s or s == 1)
    return f"{seconds / size:.0f} {unit}"


def _config_of(recipe: Recipe) -> tuple[Any, str, int]:
    """The pair's config, where it is from (the parents, or the shape known of a hub id), and bytes a parameter."""
    try:
        with TemporaryDirectory() as place:
            named = with_headers(recipe, Path(place))
            folder = _config_folder(named)
            return load_config(folder), str(folder).removeprefix(f"{place}{os.sep}"), _stored(named)
    except RpamError:
        hub_id = on_hub(recipe).get("short", "")
        if (known := shape_of_hub_id(hub_id)) is None:
            raise
        return config_of_shape(known), f"{hub_id}, not read: taken to be {known}", _STORED


def _stored(recipe: Recipe) -> int:
    """Bytes a parameter of the parents; of one whose weights are not here, as checkpoints usually have."""
    parents = recipe.parents
    try:
        return stored_bytes([open_parent(parent, parents.base) for parent in (parents.long, parents.short)])
    except RpamError:
        return _STORED


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


def _plan_json(plan: Plan) -> dict[str, Any]:
    way = {**vars(plan.way), "dtype": str(plan.way.dtype).removeprefix("torch.")}
    peaks = {place: plan.total(place) for place in ("device", "host", "disk")}
    items = [{"what": what, "where": where, "bytes": size} for what, where, size in plan.items]
    return {"way": way, "peak": peaks, "moved": plan.moved, "items": items}
