"""Memory and time of one joint step: streamed against the naive way.

    python -m bench.fit [--shape qwen2.5-0.5b] [--per-class 16] [--tokens 64] [--steps 3]

A random pair of that shape is made in a temporary folder and captured. Then each way of working runs
in a process of its own: peak resident memory above what the process held before it loaded anything,
and the median time of a step. Naive: both parents and the merge resident, plain autograd.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.naive import naive_step
from bench.problem import EVERY_TERM, TOP_K, capture_questions, captured_problem
from bench.random_models import make_pair, random_questions
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.problem import Problem, Stores
from rpam_lite.fit.setup import open_stores, work_size
from rpam_lite.platform import resident_memory
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import load_questions
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.machine import peak_memory
from rpam_lite.streaming.plan import Way, model_size, plan_for
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource

MICRO_TOKENS = 512
WAYS = {
    "disk": Way("exact", "disk", "disk", MICRO_TOKENS, 4096, False, torch.float32),
    "resident": Way("exact", "host", "host", MICRO_TOKENS, 16384, True, torch.float32),
}


def open_problem(folder: Path, way: Way) -> tuple[Problem, Stores]:
    """The objective of the captured pair, and stores, for one way of working."""
    questions = load_questions(folder / "capture")
    long, short = CheckpointSource(folder / "long"), CheckpointSource(folder / "short")
    skeleton = Skeleton(folder / "short")
    source = WeightSource(long, short, skeleton, way.codec, way.residency, scratch=folder / "scratch")
    ends = Ends(long, short, skeleton, questions.token_ids, way.chunk_rows, way.keep_head)
    settings = Fit.model_validate(EVERY_TERM)
    problem = captured_problem(source, ends, questions, way.micro_tokens, folder / "capture", settings, way.dtype)
    return problem, open_stores(problem, way.store, folder / "stores")


def streamed_step(folder: Path, way: Way) -> Callable[[], torch.Tensor]:
    """A function that computes one gradient."""
    problem, stores = open_problem(folder, way)
    values = torch.full((len(problem.grouping),), 0.5)
    return lambda: joint_gradient(problem, values, stores, lambda vector: vector)[1]


def naive(folder: Path) -> Callable[[], torch.Tensor]:
    """The same gradient with both parents and the merge resident."""
    from transformers import AutoModelForCausalLM

    problem, _ = open_problem(folder, WAYS["disk"])
    long, short = (
        AutoModelForCausalLM.from_pretrained(folder / p, dtype=torch.bfloat16).eval().requires_grad_(False)
        for p in ("long", "short")
    )
    return naive_step(problem, short, dict(long.named_parameters()))


def measure(folder: Path, name: str, steps: int) -> dict[str, Any]:
    """Peak memory and median step time of one way, in this process."""
    Skeleton(folder / "short")  # loads what transformers needs for this architecture
    before = resident_memory()
    with peak_memory(torch.device("cpu")) as peak:
        step = naive(folder) if name == "naive" else streamed_step(folder, WAYS[name])
        seconds = []
        for _ in range(steps):
            begin = time.monotonic()
            gradient = step()
            seconds.append(time.monotonic() - begin)
        used = peak() - before
    return {"peak": used, "seconds": statistics.median(seconds), "gradient": gradient.tolist()}


def capture_pair(folder: Path, per_class: int, tokens: int) -> None:
    """Capture the pair in this folder on random questions."""
    long, short = CheckpointSource(folder / "long"), CheckpointSource(folder / "short")
    skeleton = Skeleton(folder / "short")
    questions = random_questions(skeleton.config.vocab_size, per_class, tokens)
    source = WeightSource(long, short, skeleton)
    ends = Ends(long, short, skeleton, questions.token_ids, 16384)
    capture_questions(source, ends, questions, MICRO_TOKENS, folder / "capture")


def planned(folder: Path, way: Way) -> int:
    """The plan's peak for this way."""
    skeleton = Skeleton(folder / "short")
    work = work_size(load_questions(folder / "capture"), TOP_K)
    return plan_for(way, model_size(skeleton), work, on_cpu=True).total("host")


def main() -> None:
    parser = argparse.ArgumentParser(description="Streamed against naive: memory and time of a joint step.")
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--per-class", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="with a captured pair; made and removed without it")
    parser.add_argument("--way", choices=["naive", *WAYS], help="measure this one in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.folder, args.way, args.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pair(folder, args.shape)
        capture_pair(folder, args.per_class, args.tokens)
        found = {}
        for way in ("naive", *WAYS):
            command = [sys.executable, "-m", "bench.fit", "--folder", str(folder), "--way", way]
            command += ["--steps", str(args.steps)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            found[way] = json.loads(output.stdout.splitlines()[-1])
        plans = {name: planned(folder, way) for name, way in WAYS.items()}
    naive = found["naive"]
    reference = torch.tensor(naive["gradient"])
    print(f"{args.shape}, {2 * args.per_class} questions of {args.tokens} tokens, median of {args.steps} steps")
    print("| way | peak memory | planned | of naive | seconds a step | of naive | gradient differs by |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in found.items():
        differs = (torch.tensor(row["gradient"]) - reference).norm() / reference.norm()
        plan = f"{plans[name] / 2**20:.0f} MiB" if name in plans else "-"
        print(
            f"| {name} | {row['peak'] / 2**20:.0f} MiB | {plan} | {row['peak'] / naive['peak']:.2f} "
            f"| {row['seconds']:.1f} | {row['seconds'] / naive['seconds']:.2f} | {differs:.1e} |"
        )


if __name__ == "__main__":
    main()
