"""What each stage reads, does and writes. Heavy packages are imported by the stage that needs them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import write_text
from rpam_lite.pipeline.artefacts import exported_gguf, merged_folder, parent_gguf, quantized_gguf
from rpam_lite.pipeline.proving import prove_export
from rpam_lite.pipeline.reporting import gathered, page_of
from rpam_lite.pipeline.stage import Run, parent_names
from rpam_lite.pipeline.using import closing_commands
from rpam_lite.run_files import PATTERNS

if TYPE_CHECKING:
    from quant.tasks.questions import Question


def run_label(run: Run) -> None:
    """Export both parents to GGUF, sample and grade their answers, label every question."""
    from export.gguf.write import write_gguf
    from quant.tasks.questions import read_task_file
    from rpam_lite.patterns.label import label_questions
    from rpam_lite.patterns.rule import rule_of
    from rpam_lite.pipeline.labelling import draw_samples
    from rpam_lite.preflight.engine import check_engine
    from rpam_lite.preflight.questions import task_file

    recipe, settings = run.recipe, run.recipe.label
    questions = read_task_file(task_file(settings))
    pair = run.pair()
    check_engine(recipe, pair)
    long, short, donor = pair
    for name, source in (("long", long), ("short", short)):
        if not parent_gguf(run, name).exists():
            # In the donor's vocabulary: both are asked with the same token ids.
            file, step = parent_gguf(run, name), run.progress.start(f"exporting {name}", len(source.names()))
            write_gguf(source, donor.config, donor.folder, file, recipe.export.type, name, step)
    prompts, think_open = donor_prompts(run, questions)
    rule = rule_of(settings.rule, settings.price)
    found = draw_samples(run, questions, prompts, think_open, rule)
    rows = label_questions(questions, prompts, found, rule, settings.samples, settings.max_tokens)
    counts = Counter(row["label"] for row in rows)
    run.say(f"{counts['long']} questions labelled long, {counts['short']} short, {counts[None]} dropped")
    if not any(row["correct_long"] or row["correct_short"] for row in rows):
        run.say(
            "WARNING: neither parent answered any question right, so that there is nothing to learn from. "
            f"Look at their answers in {run.of('label') / 'samples'}: cut off at `label.max_tokens` "
            f"({settings.max_tokens}), in another form than `label.grader` {settings.grader!r} reads, or too hard?"
        )
    write_text(run.folder / PATTERNS, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def donor_prompts(run: Run, questions: Sequence[Question]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Token ids of every question in the donor's template, the one that the merge will answer in.

    Returns:
        Token ids by question key, and whether the template ends in an open think block.
    """
    from quant.engines.llama_cpp import LlamaCppEngine

    with LlamaCppEngine(parent_gguf(run, run.recipe.merge.donor), threads=1) as engine:
        return {q.key: engine.chat_prompt(q.question) for q in questions}, engine.opens_think


def run_export(run: Run) -> None:
    """Write the merged checkpoint as an unquantized GGUF file, and prove it in llama.cpp."""
    from export.gguf.write import write_gguf
    from rpam_lite.checkpoint.source import CheckpointSource

    source = CheckpointSource(merged_folder(run))
    step = run.progress.start("exporting", len(source.names()))
    settings, parents = run.recipe.export, parent_names(run.recipe)
    write_gguf(source, source.config, source.folder, exported_gguf(run), settings.type, run.recipe.name, step, parents)
    prove_export(run, exported_gguf(run), settings.type, source, source.config, source.folder)


def say_closing(run: Run) -> None:
    """Print the closing table, and where everything is."""
    from rpam_lite.report.markdown import closing, wish_kept

    report, dial = gathered(run), run.recipe.family
    run.say(closing(report))
    if wish := wish_kept(report.rows, dial.max_tokens_share, dial.max_points_below_long):
        run.say(f"{wish}\n")
    run.say(f"report: {page_of(run)}")
    files = [exported_gguf(run), *(quantized_gguf(run, name) for name in run.recipe.quantize.types)]
    run.say(f"files:  {', '.join(str(file) for file in files if file.is_file())}")
    run.say(f"\n{closing_commands(run)}")
