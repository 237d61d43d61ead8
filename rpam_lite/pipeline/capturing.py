"""The capture stage: both parents' hidden states and next-token distributions on the calibration set."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import write_json
from rpam_lite.pipeline.artefacts import SCRATCH
from rpam_lite.pipeline.dial import refuse_dial
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.traces import calibration_traces

if TYPE_CHECKING:
    from rpam_lite.streaming.top_k import TopK

# Error of the weights relative to the task vector above which a codec is too coarse.
CODEC_ERROR_LIMIT = 0.3


def refuse_capture(run: Run) -> None:
    """Refuse labels that nothing can be fitted to, before an older capture is removed for them."""
    refuse_dial(run)
    calibration_traces(run)


def run_capture(run: Run) -> None:
    """Keep both parents' hidden states and the selected parents' next-token distributions."""

    from rpam_lite.fit.batches import micro_batches
    from rpam_lite.fit.setup import as_begun, most_top_k_as_begun, open_weights, plan_recipe, prepare_torch
    from rpam_lite.pipeline.memory import advice, peak_text
    from rpam_lite.recipe.fitting import OF_HIDDEN_STATES
    from rpam_lite.streaming.activations import PARENTS
    from rpam_lite.streaming.capture import capture
    from rpam_lite.streaming.codec import coarsest_codec
    from rpam_lite.streaming.machine import peak_memory
    from rpam_lite.streaming.plan_table import plan_table
    from rpam_lite.streaming.survey import survey

    recipe, settings, folder = run.recipe, run.recipe.capture, run.of("capture")
    prepare_torch(recipe)
    traces = calibration_traces(run)
    chosen, questions = traces.chosen, traces.questions
    unread = sorted(settings.model_fields_set & OF_HIDDEN_STATES) if not recipe.reads_hidden_states else []
    if unread:
        told = ", ".join(f"`capture.{name}`" for name in unread)
        run.say(f"not read, for the objective reads no hidden states: {told}")
    per_label = {name: sum(q.label == name for q in chosen) for name in PARENTS}
    what = "answers" if recipe.family.settings else "questions"
    run.say(f"calibration set: {per_label['long']} long and {per_label['short']} short {what}")
    scratch = folder / SCRATCH
    planned = as_begun(plan_recipe(recipe, questions, run.folder), scratch, folder.glob("streams-*.pt"))
    run.say(plan_table(planned.plan, planned.budget))
    batches = micro_batches([len(t) for t in questions.token_ids], planned.plan.way.micro_tokens)
    step = run.progress.start("running both parents", planned.skeleton.layers)
    with advice(planned), peak_memory(planned.skeleton.device) as peak:
        source, ends = open_weights(planned, questions.token_ids, scratch)
        kept = capture(
            source,
            ends,
            questions,
            batches,
            settings.top_k,
            folder,
            planned.plan.way.dtype,
            partial(step, ""),
            most_top_k_as_begun(planned, scratch),
        )
    run.say(peak_text("the capture", planned, peak()))
    _say_top_k(run, kept)
    rows = survey(source)
    shutil.rmtree(scratch, ignore_errors=True)
    write_json(folder / "layers.json", {"version": 1, "codec": source.codec, "layers": [vars(row) for row in rows]})
    for row in rows:
        if row.codec_error > CODEC_ERROR_LIMIT:
            run.say(
                f"WARNING: {source.codec} moves the weights of layer {row.layer} by {row.codec_error:.2f} of the task "
                f"vector's norm; set `memory.codec` to {coarsest_codec(row.task_vector, CODEC_ERROR_LIMIT)}"
            )


def _say_top_k(run: Run, kept: TopK) -> None:
    from rpam_lite.streaming.top_k import MOST_TOP_K, TOLERANCE

    run.say(
        f"targets: the top {kept.top_k} log-probabilities a position lose at most {100 * kept.lost:.2g} % of the KL "
        f"divergence between the parents and on the way (theirs is {kept.kl:.3g} nats a position, on {kept.positions} "
        "of them)"
    )
    if kept.lost >= TOLERANCE:
        limit = "" if kept.top_k >= MOST_TOP_K else ", if `memory.host` allows it"
        run.say(f"WARNING: that is {100 * TOLERANCE:g} % or more; set `capture.top_k` to a larger number{limit}")
