"""The joint step on a GPU, on random pairs of real shapes: memory, time, and how much copying is hidden.

    python -m bench.gpu_fit [--shape qwen2.5-7b] [--codec exact] [--residency host]

One call, a short table last. Needs torch, transformers, safetensors and this project; bitsandbytes
only for nf4 (left out with a word where it is missing). The pair's tensors are views of two random
blocks, so that nothing is downloaded or written; without a GPU it runs on the CPU (use --layers 2).
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

from bench.problem import EVERY_TERM, capture_questions, captured_problem, memory_stores
from bench.random_models import random_questions
from rpam_lite.checkpoint.files import size_text
from rpam_lite.device import choose_device
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.recipe import Fit
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.machine import peak_memory
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import LayerPairs, WeightSource

BLOCK = 1 << 24
MICRO_TOKENS = 4096


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
        shape = self._shapes[name]
        start = zlib.crc32(name.encode()) % BLOCK
        repeats = -(-(prod(shape) + start) // BLOCK)
        flat = self._block.repeat(repeats)[start : start + prod(shape)].view(shape)
        return flat + 1 if "norm" in name else flat

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows."""
        return self.get(name)[start:stop].clone()

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


def measure(args: argparse.Namespace, codec: Any, residency: Any, folder: Path) -> str:
    """One row of the table."""
    config = config_of_shape(args.shape)
    if args.layers:
        config.num_hidden_layers = args.layers
        config.layer_types = config.layer_types[: args.layers]
    device = choose_device("auto", "device")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    skeleton = Skeleton(config, device)
    long, short = RandomParent(skeleton, 0.1), RandomParent(skeleton, 0.0)
    questions = random_questions(config.vocab_size, args.per_class, args.tokens)
    with peak_memory(device) as peak:
        source = WeightSource(long, short, skeleton, codec, residency, device, folder)
        ends = Ends(long, short, skeleton, questions.token_ids, chunk_rows=16384, keep_head=True)
        if not (folder / "targets.safetensors").exists():
            capture_questions(source, ends, questions, MICRO_TOKENS, folder, dtype)
        settings = Fit.model_validate(EVERY_TERM)
        problem = captured_problem(source, ends, questions, MICRO_TOKENS, folder, settings, dtype)
        stores = memory_stores(device)
        values = torch.full((len(problem.grouping),), 0.5, device=device)
        step = timed(lambda: joint_gradient(problem, values, stores, lambda v: v), device, args.steps)
        used = peak()
    order = [*range(skeleton.layers), *range(skeleton.layers - 1, -1, -1)]
    copy = timed(lambda: [None for _ in source.sweep(order)], device, args.steps)
    standing = replace(problem, source=Standing(source))  # type: ignore[arg-type]
    compute = timed(lambda: joint_gradient(standing, values, stores, lambda v: v), device, args.steps)
    hidden = max(0.0, min(1.0, (copy + compute - step) / copy)) if residency != "device" else 1.0
    cells = [codec, residency, size_text(used), *(f"{v:.1f}" for v in (step, compute, copy)), f"{100 * hidden:.0f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="The joint step on a GPU, on a random pair of a real shape.")
    parser.add_argument("--shape", default="qwen2.5-7b")
    parser.add_argument("--per-class", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--codec", help="only this codec")
    parser.add_argument("--residency", help="only this residency")
    args = parser.parse_args()
    ways = [("exact", "host"), ("nf4", "device")]
    if args.codec or args.residency:
        ways = [(args.codec or "exact", args.residency or "host")]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for codec, residency in ways:
            if codec == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
                lines.append(f"| {codec} | {residency} | left out: bitsandbytes is not installed |")
                continue
            lines.append(measure(args, codec, residency, Path(folder)))
    cuda = choose_device("auto", "device").type == "cuda"
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"{args.shape}, {2 * args.per_class} questions of {args.tokens} tokens, {device}, torch {torch.__version__}")
    print("| codec | residency | peak memory | seconds a step | computing alone | copying alone | copying hidden |")
    print("|---|---|---:|---:|---:|---:|---:|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
