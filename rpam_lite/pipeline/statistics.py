"""The statistics stage: what a merge method measures on the models before it merges."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import load_tensors
from rpam_lite.pipeline.artefacts import SCRATCH
from rpam_lite.pipeline.memory import advice
from rpam_lite.pipeline.stage import Run
from rpam_lite.recipe import OURS, Recipe

if TYPE_CHECKING:
    import torch

    from rpam_lite.fit.setup import Planned
    from rpam_lite.merge.models import Models
    from rpam_lite.streaming.activations import CalibrationSet

FILE = "statistics.safetensors"
# What a method that draws its own inputs is planned for, where it has no options of these names.
_SEQUENCES, _TOKENS = 8, 64


def is_measured(recipe: Recipe) -> bool:
    """Whether the recipe's method measures anything."""
    if recipe.merge.method == OURS:
        return False
    from rpam_lite.merge.methods import method_of

    return method_of(recipe.merge.method, {})[0].measure is not None


def is_captured(recipe: Recipe) -> bool:
    """Whether the recipe's method needs the calibration set."""
    if recipe.merge.method == OURS:
        return True
    from rpam_lite.merge.methods import method_of

    return "capture" in method_of(recipe.merge.method, {})[0].needs


def run_statistics(run: Run) -> None:
    """Measure, and keep the result."""
    from safetensors.torch import save_file

    from rpam_lite.checkpoint.files import whole_file
    from rpam_lite.fit.setup import prepare_torch
    from rpam_lite.merge.methods import method_of
    from rpam_lite.streaming.activations import load_questions

    recipe, folder = run.recipe, run.of("statistics")
    prepare_torch(recipe)
    method, options = method_of(recipe.merge.method, recipe.merge.options)
    assert method.measure is not None
    questions = load_questions(run.of("capture")) if is_captured(recipe) else None
    planned = _planned(run, questions, options)
    with advice(planned):
        found = method.measure(_models(run, planned, questions), options)
    with whole_file(folder / FILE) as part:
        save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, part)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    run.say(f"{method.name}: measured for {len(found)} tensors")


def load_statistics(run: Run) -> dict[str, torch.Tensor]:
    """What the method measured, by tensor name.

    Raises:
        RpamError: The file is missing or damaged.
    """
    return load_tensors(run.of("statistics") / FILE, "run `rpam statistics` again")


def _planned(run: Run, questions: CalibrationSet | None, options: Mapping[str, float]) -> Planned:
    """A way of working that the recipe's memory budget allows."""
    from rpam_lite.fit.setup import plan_work, work_size
    from rpam_lite.streaming.activations import stored_top_k
    from rpam_lite.streaming.choice import describe
    from rpam_lite.streaming.work import estimated_work

    work = (
        work_size(questions, stored_top_k(run.of("capture")))
        if questions is not None
        else estimated_work(run.recipe, int(options.get("sequences", _SEQUENCES)), int(options.get("tokens", _TOKENS)))
    )
    planned = plan_work(run.recipe, work, run.folder)
    run.say(f"plan: {describe(planned.plan.way)}")
    return planned


def _models(run: Run, planned: Planned, questions: CalibrationSet | None) -> Models:
    """The recipe's models, to be run in the planned way."""
    import torch

    from rpam_lite.checkpoint.pair import aligned, open_parent
    from rpam_lite.fit.batches import micro_batches
    from rpam_lite.merge.models import Models
    from rpam_lite.streaming.ends import Ends
    from rpam_lite.streaming.passes import Streamed
    from rpam_lite.streaming.store import ActivationStore, open_store
    from rpam_lite.streaming.weights import WeightSource

    recipe, scratch = run.recipe, run.of("statistics") / SCRATCH
    way, skeleton = planned.plan.way, planned.skeleton
    sources = {"long": planned.long, "short": planned.short}
    if recipe.parents.base is not None:
        sources["base"] = aligned(open_parent(recipe.parents.base), run.pair().donor)

    def open_model(model: str | float, token_ids: Sequence[torch.Tensor]) -> Streamed:
        other = "base" if model == "base" else "short"
        value = torch.tensor({"long": 1.0, "short": 0.0, "base": 0.0}[model] if isinstance(model, str) else model)
        long, short = sources["long"], sources[other]
        source = WeightSource(long, short, skeleton, way.codec, way.residency, skeleton.device, scratch / other)
        ends = Ends(long, short, skeleton, token_ids, way.chunk_rows, way.keep_head)
        return Streamed(source, ends, lambda name: value.to(skeleton.device), way.dtype)

    def open_sequences(shapes: Sequence[tuple[int, ...]]) -> ActivationStore:
        return open_store(way.store, scratch / "inputs", shapes, way.dtype, skeleton.device)

    def batches(lengths: Sequence[int]) -> list[list[int]]:
        return micro_batches(list(lengths), way.micro_tokens)

    return Models(skeleton, sources, open_model, batches, open_sequences, run.of("capture"), questions, recipe.seed)
