"""The Modelfile of a run, and its model on a running Ollama server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rpam_lite.checkpoint.files import read_json, write_text
from rpam_lite.checkpoint.vocabulary import chat_template, tokens_by_id
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import merged_folder, quantized_gguf
from rpam_lite.pipeline.stage import Run

if TYPE_CHECKING:
    from export.ollama import ModelSettings

NO_THINKING = (
    "its chat template does not name both <think> and </think>, so Ollama will not call it a thinking model: it "
    "answers, but `think` has no effect there and the think block stays in the answer"
)


def write_modelfiles(run: Run) -> None:
    """A Modelfile beside every quantized file; `ollama create NAME -f FILE` reads it."""
    from export.ollama import modelfile, thinks

    for name in run.recipe.quantize.types:
        file = quantized_gguf(run, name)
        write_text(modelfile_of(file), modelfile(file.name, settings(run)))
    if not thinks(chat_template(merged_folder(run)) or ""):
        run.say(f"for Ollama: {NO_THINKING}")


def modelfile_of(file: Path) -> Path:
    """The Modelfile beside a GGUF file."""
    return file.with_name(f"Modelfile.{file.stem}")


def usable_context(run: Run) -> int:
    """Tokens of prompt and answer: what the recipe asks for, but not more than the model was made for."""
    config = read_json(merged_folder(run) / "config.json", "the merged checkpoint's config")
    return min(run.recipe.ollama.num_ctx, int(config.get("max_position_embeddings", run.recipe.ollama.num_ctx)))


def settings(run: Run) -> ModelSettings:
    """What Ollama is told of the merge."""
    from export.ollama import ModelSettings, stop_tokens

    section, folder = run.recipe.ollama, merged_folder(run)
    named = read_json(folder / "tokenizer_config.json", "the tokenizer's config").get("eos_token")
    end = named.get("content") if isinstance(named, dict) else named
    tokens = tokens_by_id(folder)
    licence = folder / "LICENSE"
    return ModelSettings(
        {"num_ctx": usable_context(run), **section.model_dump(include={"temperature", "top_p", "top_k"})},
        stop_tokens(list(tokens.values()), end),
        section.system,
        licence.read_text(encoding="utf-8") if licence.exists() else "",
    )


def create_model(run: Run, name: str, type_name: str, host: str) -> None:
    """Create a quantized file of the run as a model on a running server, and check it there.

    Raises:
        RpamError: The file is not there, or the server is absent, old, refuses, or shows another model.
    """
    from export.ollama import OllamaServer, thinks

    file = quantized_gguf(run, type_name)
    if not file.is_file():
        made = ", ".join(run.recipe.quantize.types) or "none"
        raise RpamError(f"{file}: is not there; the recipe makes {made}. Choose one with --type, or `rpam run` first.")
    chosen, thinking = settings(run), thinks(chat_template(merged_folder(run)) or "")
    if not thinking:
        run.say(f"note: {NO_THINKING}")
    with OllamaServer(host) as server:
        server.create(name, file, chosen, run.say)
        found = server.check(name, chosen, thinking)
    run.say(f"created {name} on {host}: {', '.join(found)}; try: ollama run {name}")
