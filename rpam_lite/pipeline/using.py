"""What is known of a run's merge by whoever uses it: places, sampling, what its chat template does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rpam_lite.checkpoint.files import write_text
from rpam_lite.checkpoint.think import THINK_CLOSE, THINK_OPEN, names_block
from rpam_lite.checkpoint.vocabulary import chat_template, opens_think_block, tokens_by_id
from rpam_lite.pipeline.artefacts import exported_gguf, merged_folder, quantized_gguf
from rpam_lite.pipeline.ollama import modelfile_of, usable_context
from rpam_lite.pipeline.stage import Run
from rpam_lite.report.commands import Use, as_markdown, commands
from rpam_lite.run_files import USE

# The type that most people take, and that programs take from a repository if none is named.
USUAL_TYPE = "Q4_K_M"


def usual_type(types: tuple[str, ...]) -> str | None:
    """The type to name in a command: Q4_K_M if there, else the first; None without any."""
    return USUAL_TYPE if USUAL_TYPE in types else next(iter(types), None)


def use_of(run: Run) -> Use:
    """What `rpam_lite.report.commands` is told of a run whose merge is done.

    Raises:
        RpamError: The merged folder is not there, or its chat template fails.
    """
    recipe, folder = run.recipe, merged_folder(run)
    template = chat_template(folder) or ""
    context = usable_context(run)
    chosen = usual_type(recipe.quantize.types)
    file = quantized_gguf(run, chosen) if chosen else exported_gguf(run)
    return Use(
        name=recipe.name,
        checkpoint=str(folder),
        gguf=str(file),
        modelfile=str(modelfile_of(file)) if chosen else "",
        gguf_name=file.name,
        context=context,
        max_tokens=min(recipe.eval.max_tokens, context),
        temperature=recipe.ollama.temperature,
        top_p=recipe.ollama.top_p,
        top_k=recipe.ollama.top_k,
        system=recipe.ollama.system,
        names_think=names_block(template),
        opens_think=opens_think_block(template, folder) if template else False,
        think_tokens={THINK_OPEN, THINK_CLOSE} <= set(tokens_by_id(folder).values()),
    )


def use_on_hub(run: Run, repository: str, gguf_repository: str) -> Use:
    """The same of the merge as it is published."""
    use = use_of(run)
    chosen = usual_type(run.recipe.quantize.types) or run.recipe.export.type
    return replace(
        use,
        checkpoint=repository,
        gguf=f"{gguf_repository}:{chosen}",
        modelfile=Path(use.modelfile).name if use.modelfile else "",
        on_hub=True,
    )


def write_use(run: Run) -> None:
    """report/use.md: the commands of all four programs."""
    head = f"# Use {run.recipe.name}\n\nTo try it here: `rpam chat {run.folder}`\n\n"
    write_text(run.folder / USE, head + as_markdown(use_of(run)))


def closing_commands(run: Run) -> str:
    """One line a program, for the end of a run; report/use.md has them whole."""
    lines = {"try it": f"rpam chat {run.folder}"}
    for command in commands(use_of(run)):
        if command.program == "transformers":
            lines[command.program] = f"{merged_folder(run)}; its code, and notes to all: {run.of('report') / 'use.md'}"
        else:
            typed = command.code.splitlines()
            lines[command.program] = " && ".join(typed) if command.program == "Ollama" else typed[0]
    return "\n".join(f"{name + ':':<14}{line}" for name, line in lines.items())
