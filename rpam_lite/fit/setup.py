"""Put the engine together for one pair and one plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.checkpoint.pair import open_pair, stored_bytes
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.device import compute_reproducibly
from rpam_lite.fit.batches import load_batches
from rpam_lite.fit.grouping import Grouping, grouping
from rpam_lite.fit.low_rank import FieldForm
from rpam_lite.fit.problem import Problem, Stores
from rpam_lite.platform import resident_memory
from rpam_lite.recipe import Fit, Recipe
from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.activations import CalibrationSet, stored_top_k
from rpam_lite.streaming.choice import choose, fits
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.machine import budget_of, device_of
from rpam_lite.streaming.plan import Budget, ModelSize, Plan, Way, WorkSize, model_size, plan_for
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import StoreName, open_store
from rpam_lite.streaming.top_k import MOST_TOP_K
from rpam_lite.streaming.weights import WeightSource
from rpam_lite.streaming.work import ASSUMED_TOP_K, assumed_top_k


@dataclass(frozen=True)
class Planned:
    """A pair, a calibration set and the plan for them; nothing is loaded yet. `codec` is the recipe's own."""

    long: ParentSource
    short: ParentSource
    skeleton: Skeleton
    model: ModelSize
    work: WorkSize
    budget: Budget
    plan: Plan
    codec: CodecName | None = None


def prepare_torch(recipe: Recipe) -> None:
    """Set torch up for a stage that computes: the recipe's threads, and the same bits every time.

    Raises:
        RpamError: This machine has no such accelerator.
    """
    torch.set_num_threads(recipe.threads)
    compute_reproducibly(device_of(recipe.memory))


def plan_recipe(recipe: Recipe, questions: CalibrationSet, folder: Path, captured: Path | None = None) -> Planned:
    """Choose how to work on this pair and calibration set.

    Args:
        recipe: The recipe.
        questions: Its calibration set.
        folder: Where scratch files would go.
        captured: The capture's folder, once it is done: it knows how many log-probabilities a position are kept.

    Raises:
        RpamError: As `plan_work`.
    """
    top_k = assumed_top_k(recipe) if captured is None else stored_top_k(captured)
    return plan_work(recipe, work_size(questions, top_k), folder)


def plan_work(recipe: Recipe, work: WorkSize, folder: Path) -> Planned:
    """Choose how to do this much work on the recipe's pair; `folder` is where scratch files would go.

    Raises:
        RpamError: The architecture can't be streamed, or the budget is too small.
    """
    parents = recipe.parents
    long, short, donor = open_pair(parents.long, parents.short, parents.base, recipe.merge.donor)
    device = device_of(recipe.memory)
    skeleton = Skeleton(donor.folder, device)
    computed = not (long.as_stored and short.as_stored)
    model = replace(model_size(skeleton, stored_bytes([long, short])), computed=computed)
    work = with_coefficients(work, skeleton, recipe.fit)
    budget = budget_of(recipe.memory, device, folder)
    codec = recipe.memory.fixed_codec
    plan = choose(model, work, budget, codec, resident_memory())
    return Planned(long, short, skeleton, model, work, budget, plan, codec)


def with_coefficients(work: WorkSize, skeleton: Skeleton, fit: Fit) -> WorkSize:
    """The work, knowing how many numbers the fit moves, and how often."""
    numbers = len(grouping_of(skeleton, fit))
    return replace(work, numbers=numbers, steps=fit.steps, fields=fit.granularity == "low_rank")


def as_begun(planned: Planned, scratch: Path, states: Iterable[Path] = ()) -> Planned:
    """The plan in the way of working that an interrupted run began with, which is what its state goes on with.

    Memory that is free now and was not then would else give other micro-batches than those of the state.

    Args:
        planned: The plan as one would make it now.
        scratch: The stage's folder for what is unfinished.
        states: Files of its state beside that; they go with `scratch` where the way does not fit any more.
    """
    file, way = scratch / "way.json", planned.plan.way
    if file.exists():
        told = read_json(file, "the way of working")
        begun = Way(**told | {"dtype": getattr(torch, told["dtype"])})
        on_cpu = planned.budget.device is None
        plan = plan_for(begun, planned.model, planned.work, on_cpu, planned.plan.resident)
        if fits(plan, planned.budget):
            return replace(planned, plan=plan)
        shutil.rmtree(scratch)
        for state in states:
            state.unlink()
    scratch.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(way) | {"dtype": str(way.dtype).removeprefix("torch.")})
    return planned


def largest_top_k(planned: Planned) -> int:
    """Log-probabilities a position that the plan's budget still holds: a power of two."""
    top_k, on_cpu = ASSUMED_TOP_K, planned.budget.device is None
    while top_k < MOST_TOP_K:
        more = replace(planned.work, top_k=2 * top_k)
        if not fits(plan_for(planned.plan.way, planned.model, more, on_cpu, planned.plan.resident), planned.budget):
            break
        top_k *= 2
    return top_k


def most_top_k_as_begun(planned: Planned, scratch: Path) -> int:
    """`largest_top_k`, as it was when an interrupted capture began: memory that is free now would give another."""
    file = scratch / "most_top_k.json"
    if not file.exists():
        write_json(file, {"most_top_k": largest_top_k(planned)})
    return int(read_json(file, "the interrupted capture's bound on k")["most_top_k"])


def work_size(questions: CalibrationSet, top_k: int) -> WorkSize:
    """What the plan needs to know of a calibration set."""
    lengths = [len(t) for t in questions.token_ids]
    return WorkSize(
        tokens=sum(lengths),
        longest=max(lengths),
        kept=sum(len(p) for p in questions.positions),
        targets=sum(len(questions.target_positions(q)) for q in range(len(questions))),
        distinct=len(set(torch.cat(questions.token_ids).tolist())),
        top_k=top_k,
    )


def open_weights(planned: Planned, token_ids: Sequence[torch.Tensor], scratch: Path) -> tuple[WeightSource, Ends]:
    """Load what the plan keeps at hand; `token_ids` are all that will be looked up."""
    way, skeleton = planned.plan.way, planned.skeleton
    source = WeightSource(planned.long, planned.short, skeleton, way.codec, way.residency, skeleton.device, scratch)
    ends = Ends(planned.long, planned.short, skeleton, token_ids, way.chunk_rows, way.keep_head)
    skeleton.share_masks(max(len(ids) for ids in token_ids))
    return source, ends


def open_problem(recipe: Recipe, planned: Planned, questions: CalibrationSet, captured: Path, scratch: Path) -> Problem:
    """The objective, without any questions yet: `with_batches` gives them."""
    source, ends = open_weights(planned, questions.token_ids, scratch)
    fit = recipe.objective
    return Problem(
        skeleton=planned.skeleton,
        source=source,
        ends=ends,
        grouping=grouping_of(planned.skeleton, fit),
        questions=questions,
        batches=(),
        captured=captured,
        settings=fit,
        dtype=planned.plan.way.dtype,
    )


def grouping_of(skeleton: Skeleton, fit: Fit) -> Grouping:
    """Which tensors share a lambda, as the recipe says."""
    return grouping(skeleton.tensors(), fit.granularity, FieldForm(fit.rank, fit.lower, fit.upper))


def with_batches(problem: Problem, chosen: list[int], shares: torch.Tensor, micro_tokens: int) -> Problem:
    """The objective over the chosen questions (all of them, or one process's share).

    Args:
        problem: What `open_problem` gave.
        chosen: Numbers of calibration questions.
        shares: Weight of every calibration question in the loss, float32 [questions].
        micro_tokens: Padded tokens of a micro-batch at most.
    """
    batches = load_batches(problem.captured, problem.questions, chosen, micro_tokens, shares, problem.settings)
    return replace(problem, batches=batches)


def open_stores(problem: Problem, kind: StoreName, scratch: Path) -> Stores:
    """The stores that one gradient needs, all of one kind; `scratch` is used by `disk`."""
    hidden = problem.skeleton.config.hidden_size
    full = [(*batch.ids.shape, hidden) for batch in problem.batches]
    kept = [(*batch.positions.shape, hidden) for batch in problem.batches]
    inputs, injected, upstream = (
        open_store(kind, scratch / name, shapes, problem.dtype, problem.device)
        for name, shapes in (("inputs", full), ("injected", kept), ("upstream", full))
    )
    return Stores(inputs, injected, upstream)
