"""The fit stage under `fit.preset: release`: RPAM as its release does it, to compare with."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from rpam_lite.pipeline.artefacts import SCRATCH
from rpam_lite.pipeline.memory import advice
from rpam_lite.pipeline.stage import Run

if TYPE_CHECKING:
    from rpam_lite.fit.coefficients import Coefficients


def fit_as_released(run: Run) -> tuple[Coefficients, dict[str, Any]]:
    """Fit one coefficient a weight.

    Returns:
        The coefficients, whose values for decoder layers stand in files beside, and the contents of fit.json.
    """

    from rpam_lite.fit.coefficients import Coefficients
    from rpam_lite.fit.elements import load_elements
    from rpam_lite.fit.groups import group_of
    from rpam_lite.fit.release import fit_release, padded_prompts
    from rpam_lite.fit.setup import plan_recipe, prepare_torch
    from rpam_lite.streaming.activations import load_questions
    from rpam_lite.streaming.choice import describe
    from rpam_lite.streaming.ends import Ends
    from rpam_lite.streaming.weights import WeightSource

    recipe, settings, folder = run.recipe, run.recipe.fit.release, run.of("fit")
    prepare_torch(recipe)
    questions = load_questions(run.of("capture"))
    planned = plan_recipe(recipe, questions, run.folder, run.of("capture"))
    way, skeleton = planned.plan.way, planned.skeleton
    run.say("preset release: one coefficient a weight, fitted as the RPAM release does; its memory is not planned")
    if unread := sorted(recipe.fit.model_fields_set - {"preset", "release"}):
        run.say(f"not read under this preset: {', '.join(f'`fit.{name}`' for name in unread)}")
    prompts = padded_prompts(
        [ids[:length] for ids, length in zip(questions.token_ids, questions.prompt_lengths, strict=True)],
        settings.prompt_tokens,
        _pad(skeleton.config),
    )
    scratch = folder / SCRATCH
    source = WeightSource(planned.long, planned.short, skeleton, way.codec, way.residency, skeleton.device, scratch)
    ends = Ends(planned.long, planned.short, skeleton, [prompts], way.chunk_rows, keep_head=False)
    step = run.progress.start("fitting as released", skeleton.layers)
    is_long = questions.is_long.tolist()
    with advice(planned):
        layers = fit_release(skeleton, source, ends, prompts, is_long, settings, way.dtype, folder, step)
    shutil.rmtree(scratch, ignore_errors=True)
    sums = {group_of(name, "element"): [1 - settings.start, 1] for name in skeleton.outside}
    for layer in range(skeleton.layers):
        for name, weights in load_elements(folder, layer)[0].items():
            own = sums.setdefault(group_of(name, "element"), [0.0, 0])
            own[0], own[1] = own[0] + float(weights.sum()), own[1] + weights.numel()
    run.say(f"{sum(count for _, count in sums.values()) - len(skeleton.outside)} coefficients")
    values = {group: total / count for group, (total, count) in sums.items()}
    steps = [
        {
            "pull": sum(row[f"pull_{when}"] for row in layers),
            "contrastive": sum(row[f"contrastive_{when}"] for row in layers),
        }
        for when in ("first", "last")
    ]
    warning = None if steps[1]["pull"] < steps[0]["pull"] else "the pull never fell below its start"
    log = {"version": 3, "way": f"preset release, {describe(way)}", "layers": layers, "steps": steps}
    log |= {"stopped": "epochs", "warning": warning, "hessian": None}
    return Coefficients(granularity="element", values=values), log


def _pad(config: Any) -> int:
    """Token that prompts are padded with: the model's own, else its end of text, else 0."""
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    return 0
