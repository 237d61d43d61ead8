"""The joint step on a GPU, on random pairs of real shapes: memory, time, and how much copying is hidden.

    python -m bench.gpu_fit [--shape qwen2.5-7b ...] [--way host | device | naive ...]

One call, a short table last. Needs torch, transformers, safetensors and this project; bitsandbytes
only for nf4 (left out with a word where it is missing). The pair's tensors are views of two random
blocks, so that nothing is downloaded or written; without a GPU it runs on the CPU (use --layers 2).
Peaks are of tensors, without CUDA's own context; the naive way keeps both parents and the merge.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from bench.naive import naive_step
from bench.problem import EVERY_TERM, TOP_K, capture_questions, captured_problem, memory_stores
from bench.random_models import random_questions
from rpam_lite.checkpoint.files import size_text
from rpam_lite.device import choose_device, compute_reproducibly, release_memory
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.problem import Problem
from rpam_lite.fit.setup import work_size
from rpam_lite.platform import resident_memory
from rpam_lite.recipe import Fit
from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.machine import peak_memory
from rpam_lite.streaming.plan import Way, model_size, plan_for
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import LayerPairs, Residency, WeightSource

BLOCK = 1 << 24
MICRO_TOKENS, CHUNK_ROWS = 2048, 16384
WAYS: dict[str, tuple[CodecName, Residency]] = {
    "host": ("exact", "host"),
    "device": ("nf4", "device"),
    "naive": ("exact", "disk"),
}
LABELS = {"host": "exact, streamed from the host", "device": "nf4, on the device", "naive": "naive"}


class RandomParent:
    """A parent whose tensors are cut out of a random block at a place that depends on their name."""

    as_stored = False

    def __init__(self, skeleton: Skeleton, task_vector: float) -> None:
        self.folder, self.config = Path("random"), skeleton.config.to_dict()
        self._shapes = skeleton.tensors()
        generator = torch.Generator().manual_seed(1)
        block = 0.02 * torch.randn(BLOCK, generator=generator)
        delta = 0.02 * torch.randn(BLOCK, generator=generator)
        self._block = (block + task_vector * delta).bfloat16()

    def names(self) -> Sequence[str]:
        """Tensor names."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Always bfloat16."""
        return torch.bfloat16

    def get(self, name: str) -> torch.Tensor:
        """One tensor; norms around 1."""
        return self.rows(name, 0, self._shapes[name][0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows, without the others being made."""
        shape = (stop - start, *self._shapes[name][1:])
        begin = (zlib.crc32(name.encode()) + start * prod(shape[1:])) % BLOCK
        repeats = -(-(prod(shape) + begin) // BLOCK)
        flat = (self._block if repeats == 1 else self._block.repeat(repeats))[begin : begin + prod(shape)].view(shape)
        return flat + 1 if "norm" in name else flat.clone()

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """One tensor into `out`."""
        out.copy_(self.get(name))


class Standing:
    """A weight source that gives the same layer again and again: computation without any copying."""

    def __init__(self, source: WeightSource) -> None:
        self.skeleton = source.skeleton
        self._pairs = source.layer(0)

    def sweep(self, order: Sequence[int]) -> Iterator[tuple[int, LayerPairs]]:
        """The first layer in every layer's place."""
        for layer in order:
            yield layer, self._pairs


def timed(action: Callable[[], Any], device: torch.device, times: int) -> float:
    """Median seconds of `times` calls after one to warm up."""
    seconds = []
    for i in range(times + 1):
        begin = time.monotonic()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i:
            seconds.append(time.monotonic() - begin)
    return statistics.median(seconds)


def random_pair(shape: str, layers: int | None, device: torch.device) -> tuple[RandomParent, RandomParent, Skeleton]:
    """Long, Short and what they are, of a well-known shape; of its first layers alone where that is said."""
    config = config_of_shape(shape)
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    skeleton = Skeleton(config, device)
    return RandomParent(skeleton, 0.1), RandomParent(skeleton, 0.0), skeleton


def opened(
    parents: tuple[RandomParent, RandomParent, Skeleton], way: Way, questions: CalibrationSet, folder: Path
) -> Problem:
    """The objective in one way of working; captured first, if `folder` holds no capture yet."""
    long, short, skeleton = parents
    source = WeightSource(long, short, skeleton, way.codec, way.residency, skeleton.device, folder)
    ends = Ends(long, short, skeleton, questions.token_ids, way.chunk_rows, way.keep_head)
    if not (folder / "targets.safetensors").exists():
        capture_questions(source, ends, questions, MICRO_TOKENS, folder, way.dtype)
    settings = Fit.model_validate(EVERY_TERM)
    return captured_problem(source, ends, questions, MICRO_TOKENS, folder, settings, way.dtype)


def measure_streamed(problem: Problem, way: Way, steps: int) -> list[str]:
    """Cells of the table: peak, planned, seconds a step, of computing alone, of copying alone, share of it hidden."""
    device, skeleton, source = problem.device, problem.skeleton, problem.source
    stores = memory_stores(device)
    values = torch.full((len(problem.grouping),), 0.5, device=device)
    with peak_memory(device) as peak:
        step = timed(lambda: joint_gradient(problem, values, stores, lambda v: v), device, steps)
        used = peak()
    work = work_size(problem.questions, TOP_K)
    on_cpu = device.type == "cpu"
    plan = plan_for(way, model_size(skeleton, 2), work, on_cpu, resident_memory() if on_cpu else 0)
    order = [*range(skeleton.layers), *range(skeleton.layers - 1, -1, -1)]
    copy = timed(lambda: [None for _ in source.sweep(order)], device, steps)
    standing = replace(problem, source=Standing(source))  # type: ignore[arg-type]
    compute = timed(lambda: joint_gradient(standing, values, stores, lambda v: v), device, steps)
    hidden = "-" if way.residency == "device" else f"{100 * max(0.0, min(1.0, (copy + compute - step) / copy)):.0f} %"
    planned = plan.total("host" if on_cpu else "device")
    return [size_text(used), size_text(planned), *(f"{v:.1f}" for v in (step, compute, copy)), hidden]


def measure_naive(problem: Problem, parents: tuple[RandomParent, RandomParent, Skeleton], steps: int) -> list[str]:
    """Cells of the table for both parents and the merge in memory, with plain autograd."""
    from transformers import AutoModelForCausalLM

    long, short, skeleton = parents
    device = skeleton.device
    with peak_memory(device) as peak:
        with device:
            model = AutoModelForCausalLM.from_config(skeleton.config, dtype=torch.bfloat16).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(short.get(name))
        of_long = {name: long.get(name).to(device) for name, _ in model.named_parameters()}
        step = timed(naive_step(problem, model, of_long), device, steps)
        return [size_text(peak()), "-", f"{step:.1f}", "-", "-", "-"]


def measured(args: argparse.Namespace, shape: str, name: str, folder: Path) -> list[str]:
    """One row of the table."""
    device = choose_device("auto", "device")
    if name == "device" and importlib.util.find_spec("bitsandbytes") is None:
        return ["left out: bitsandbytes is not installed"]
    compute_reproducibly(device)
    parents = random_pair(shape, args.layers, device)
    questions = random_questions(parents[2].config.vocab_size, args.per_class, args.tokens)
    codec, residency = WAYS[name]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    way = Way(codec, residency, "host", MICRO_TOKENS, CHUNK_ROWS, False, dtype)
    try:
        problem = opened(parents, way, questions, folder)
        return (
            measure_naive(problem, parents, args.steps)
            if name == "naive"
            else measure_streamed(problem, way, args.steps)
        )
    except torch.OutOfMemoryError:
        return ["out of memory"]
    finally:
        release_memory(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="The joint step on a GPU, on random pairs of real shapes.")
    parser.add_argument("--shape", nargs="+", default=["qwen2.5-1.5b", "qwen2.5-7b"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--per-class", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, help="only so many layers")
    args = parser.parse_args()
    lines = []
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            for name in args.way:
                cells = [shape, LABELS[name], *measured(args, shape, name, Path(folder))]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    device = choose_device("auto", "device")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    print(f"\n{2 * args.per_class} questions of {args.tokens} tokens, {card}, torch {torch.__version__}")
    print("| shape | way | peak memory | planned | seconds a step | computing alone | copying alone | copying hidden |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
