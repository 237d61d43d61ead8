"""The stages from the merged checkpoint to quantized GGUF files: importance matrix, quantization, divergence."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import write_json
from rpam_lite.pipeline.artefacts import exported_gguf, imatrix_file, merged_folder, quantized_gguf
from rpam_lite.pipeline.memory import advice
from rpam_lite.pipeline.ollama import write_modelfiles
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.traces import calibration_traces
from rpam_lite.run_files import DIVERGENCE

if TYPE_CHECKING:
    from quant.gguf import Settings

# Below this many bits a weight, reasoning models of this many parameters or fewer lose much.
_LOW_BITS, _SMALL = 3.6, 7e9


def run_imatrix(run: Run) -> None:
    """Mean squared inputs of the merge's matrices on the calibration traces, one pass over its weights."""

    from export.gguf.architecture import gguf_names
    from quant.imatrix import Inputs, write_imatrix
    from rpam_lite.checkpoint.source import CheckpointSource
    from rpam_lite.fit.batches import micro_batches
    from rpam_lite.fit.setup import plan_work, prepare_torch, work_size
    from rpam_lite.streaming.ends import Ends
    from rpam_lite.streaming.inputs import squared_inputs
    from rpam_lite.streaming.merged import one_parent
    from rpam_lite.streaming.passes import Streamed
    from rpam_lite.streaming.weights import WeightSource
    from rpam_lite.streaming.work import assumed_top_k

    recipe = run.recipe
    prepare_torch(recipe)
    questions = calibration_traces(run).questions
    planned = plan_work(recipe, work_size(questions, assumed_top_k(recipe)), run.folder)
    merged, skeleton, way = CheckpointSource(merged_folder(run)), planned.skeleton, planned.plan.way
    # Both "parents" are the merge itself, read from its folder as it will be exported.
    batches = micro_batches([len(t) for t in questions.token_ids], way.micro_tokens)
    with advice(planned):
        source = WeightSource(merged, merged, skeleton, "exact", "disk", skeleton.device)
        ends = Ends(merged, merged, skeleton, questions.token_ids, way.chunk_rows, keep_head=False)
        model = Streamed(source, ends, one_parent("short", skeleton.device), way.dtype)
        step = run.progress.start("importance matrix", skeleton.layers)
        found = squared_inputs(model, questions.token_ids, batches, partial(step, ""))
    name_of = gguf_names(sorted(found), merged.config, merged.folder)
    tokens = sum(len(t) for t in questions.token_ids)
    matrices = {name_of[name]: Inputs(squares.numpy(), tokens) for name, squares in found.items()}
    write_imatrix(matrices, imatrix_file(run), dataset(run))
    run.say(f"importance matrix: {len(matrices)} matrices, {tokens} tokens")


def dataset(run: Run) -> str:
    """What the importance matrix was calibrated on."""
    return f"{run.recipe.name} calibration traces"


def settings(run: Run) -> Settings:
    """The recipe's `quantize` section, with the run's importance matrix."""
    from quant.gguf import Settings

    section = run.recipe.quantize
    return Settings(
        section.threads,
        imatrix_file(run) if section.imatrix else None,
        dataset(run),
        section.overrides,
        section.output_type,
        section.embedding_type,
    )


def run_quantize(run: Run) -> None:
    """Make the quantized GGUF files, each in a process of its own."""
    from quant.gguf import quantize, sizes
    from quant.header import read_header

    chosen, types, source = settings(run), run.recipe.quantize.types, exported_gguf(run)
    told = sizes(source, types, chosen) if types else {}
    tensors = read_header(source).tensors
    small = sum(prod(tensor.shape) for tensor in tensors) <= _SMALL
    for name in types:
        if small and told[name].bits < _LOW_BITS:
            run.say(f"WARNING: {name} has {told[name].bits:.1f} bits a weight; small reasoning models lose much there")
        step = run.progress.start(f"quantizing to {name}, {told[name].mib:.1f} MiB", len(tensors))
        if fallbacks := quantize(source, quantized_gguf(run, name), name, chosen, step):
            run.say(f"{name}: llama.cpp can't use it on {len(fallbacks)} tensors, among them {fallbacks[0]}")
    write_modelfiles(run)


def run_divergence(run: Run) -> None:
    """KL divergence of every quantized file to the unquantized one on the calibration traces."""
    from quant.divergence import divergence

    questions = calibration_traces(run).questions
    files = {name: quantized_gguf(run, name) for name in run.recipe.quantize.types}
    step = run.progress.start("divergence", len(files) * len(questions))
    found = divergence(
        exported_gguf(run),
        list(files.values()),
        [t.tolist() for t in questions.token_ids],
        questions.prompt_lengths,
        run.recipe.engine_threads,
        step,
    )
    rows: dict[str, Any] = {name: vars(d) for name, d in zip(files, found, strict=True)}
    write_json(run.folder / DIVERGENCE, {"version": 1, "base": exported_gguf(run).name, "files": rows})
    for name, d in zip(files, found, strict=True):
        run.say(f"{name}: KL divergence {d.mean:.2g} ± {d.error:.1g} nats, same top token {100 * d.same_top:.1f} %")
