"""Formats that other programs read: `export` and `ollama create`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rpam_lite.cli.common import RecipeArgument, RunsOption, app, refuse_others, run_stage, with_run


@app.command("export")
def export_command(
    context: typer.Context,
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    direct: Annotated[Path | None, typer.Option(help="merge into this GGUF file, without a merged checkpoint")] = None,
    file_type: Annotated[str, typer.Option("--type", help="with --direct: F32, F16, BF16 or Q8_0")] = "F16",
    mergekit: Annotated[Path | None, typer.Option(help="write the same merge as a mergekit recipe instead")] = None,
    lora: Annotated[Path | None, typer.Option(help="write it as a LoRA adapter folder over one parent instead")] = None,
    over: Annotated[str, typer.Option(help="with --lora: the parent, long or short")] = "short",
    rank: Annotated[int, typer.Option(min=1, help="with --lora: rank of every pair")] = 64,
    floor: Annotated[float, typer.Option(min=0, max=1, help="with --lora: least energy kept")] = 0.9,
) -> None:
    """Write the merged checkpoint as GGUF; or the merge as a recipe for mergekit, or as a LoRA adapter.

    Example: rpam export recipes/tiny.yaml --lora adapter --over short --rank 128
    """
    from rpam_lite.pipeline.others import write_adapter, write_direct, write_mergekit

    modes = {"direct": ("file_type",), "mergekit": (), "lora": ("over", "rank", "floor")}
    mode = next((name for name in modes if context.params[name] is not None), None)
    read = {"recipe", "runs", *((mode, *modes[mode]) if mode else ())}
    refuse_others(context, read, f"--{mode}" if mode else "the export of the merge as GGUF")
    if direct:
        with_run(recipe, runs, partial(write_direct, file=direct, file_type=file_type))
    elif mergekit:
        with_run(recipe, runs, partial(write_mergekit, file=mergekit))
    elif lora:
        with_run(recipe, runs, partial(write_adapter, folder=lora, over=over, rank=rank, floor=floor))
    else:
        run_stage("export", recipe, runs)


ollama_app = typer.Typer(help="Put a run's quantized file on a running Ollama server.", no_args_is_help=True)
app.add_typer(ollama_app, name="ollama")


@ollama_app.command("create")
def ollama_create_command(
    name: Annotated[str, typer.Argument(help="name of the model there")],
    recipe: RecipeArgument,
    runs: RunsOption = Path("runs"),
    type_name: Annotated[str, typer.Option("--type", help="which of the run's quantized files")] = "Q4_K_M",
    host: Annotated[str, typer.Option(help="address of the server")] = "http://localhost:11434",
) -> None:
    """Create a model on a running Ollama server from a run's quantized file, and check it there.

    Example: rpam ollama create my-merge recipes/tiny.yaml --type Q4_K_M
    """
    from rpam_lite.pipeline.ollama import create_model

    with_run(recipe, runs, partial(create_model, name=name, type_name=type_name, host=host))
