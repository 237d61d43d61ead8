"""On the embedded pair: what codecs do to the coefficients, and what the sequential start saves.

    python -m bench.tiny [--per-level 4]

The calibration set is made by the question generator: written-out answers in the Long way from
level 3 on, in the Short way below, so that no model has to be sampled.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bench.problem import EVERY_TERM, capture_questions, captured_problem, memory_stores
from recipes.tiny.arithmetic import long_response, short_response
from recipes.tiny.questions import draw_questions
from recipes.tiny.splits import Split
from recipes.tiny.tokenizer import TURN_END, TURN_START
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.fit.joint import Fitted, fit_jointly
from rpam_lite.fit.problem import Problem, Stores
from rpam_lite.fit.sequential import ITERATIONS, fit_sequentially
from rpam_lite.recipe import Fit
from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.codec import CODECS
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource

PAIR = Path(__file__).parents[1] / "recipes" / "tiny"
MICRO_TOKENS = 4096


def written_questions(per_level: int, split: Split = "calibration") -> CalibrationSet:
    """`per_level` questions of every level with their written answers."""
    tokenizer = Tokenizer.from_file(str(PAIR / "long" / "tokenizer.json"))
    prompts, answers, is_long = [], [], []
    for problem, question in draw_questions(split, per_level, seed=3):
        prompt = f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n"
        answer = long_response(problem) if problem.level > 2 else short_response(problem)
        prompts.append(tokenizer.encode(prompt).ids)
        answers.append(tokenizer.encode(answer + TURN_END).ids)
        is_long.append(problem.level > 2)
    ids = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
    return CalibrationSet(
        token_ids=ids,
        prompt_lengths=[len(p) for p in prompts],
        is_long=torch.tensor(is_long),
        positions=[torch.arange(1, len(t)) for t in ids],
    )


def open_problem(questions: CalibrationSet, codec: CodecName, folder: Path, settings: Fit) -> tuple[Problem, Stores]:
    """Capture with this codec, and the objective on it."""
    long, short = CheckpointSource(PAIR / "long"), CheckpointSource(PAIR / "short")
    skeleton = Skeleton(PAIR / "short")
    source = WeightSource(long, short, skeleton, codec, "host")
    ends = Ends(long, short, skeleton, questions.token_ids)
    capture_questions(source, ends, questions, MICRO_TOKENS, folder)
    problem = captured_problem(source, ends, questions, MICRO_TOKENS, folder, settings)
    return problem, memory_stores(skeleton.device)


def fit(problem: Problem, stores: Stores, sequential: bool) -> Fitted:
    """Fit from 0.5, with or without the sequential start."""
    values = torch.full((len(problem.grouping),), 0.5)
    if sequential:
        values, _ = fit_sequentially(problem, values, stores.upstream, lambda v: v, None)
    return fit_jointly(problem, values, stores, lambda v: v, None)


def layer_runs_to(curve: list[dict[str, float]], goal: float, layers: int, before: float) -> float:
    """Layer evaluations (forward, or recompute with backward) until the loss is at the goal."""
    for gradients, entry in enumerate(curve, 1):
        if entry["loss"] <= goal:
            return before + gradients * 2 * layers
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description="Codecs and the sequential start, on the embedded pair.")
    parser.add_argument("--per-level", type=int, default=4)
    args = parser.parse_args()
    random.seed(1)
    terms = EVERY_TERM | {"optimizer": "adam", "tolerance": 0.0, "long_weight": 2.0}
    settings = Fit.model_validate(terms | {"steps": 40})
    patient = Fit.model_validate(terms | {"steps": 80})
    questions = written_questions(args.per_level)
    fits, errors = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            problem, stores = open_problem(questions, codec, Path(folder) / codec, settings)
            fits[codec] = fit(problem, stores, sequential=True)
            errors[codec] = max(problem.source.codec_error(i) for i in range(problem.skeleton.layers))
        problem, stores = open_problem(questions, "exact", Path(folder) / "alone", patient)
        alone = fit(problem, stores, sequential=False)
    print(f"{len(questions)} questions, {len(fits['exact'].values)} lambdas, {settings.steps} joint steps")
    print("| codec | error of the weights / task vector | largest difference of lambda to bf16 | loss |")
    print("|---|---:|---:|---:|")
    for codec, fitted in fits.items():
        difference = (fitted.values - fits["bf16"].values).abs().max()
        print(
            f"| {codec} | {errors[codec]:.3f} | {difference:.4f} | {min(entry['loss'] for entry in fitted.curve):.5f} |"
        )
    layers = problem.skeleton.layers
    best = min(entry["loss"] for fitted in (alone, fits["exact"]) for entry in fitted.curve)
    # One layer has one lambda: a Jacobian pass costs two forward passes, each iteration; and one to go on.
    start = layers * (ITERATIONS * 2 + 1 + 1)
    print("\n| start | first loss | best loss | layer runs to within 1 % of the best |")
    print("|---|---:|---:|---:|")
    for name, fitted, before in (("0.5", alone, 0.0), ("sequential", fits["exact"], float(start))):
        runs = layer_runs_to(fitted.curve, 1.01 * best, layers, before)
        losses = [entry["loss"] for entry in fitted.curve]
        print(f"| {name} | {losses[0]:.5f} | {min(losses):.5f} | {runs:.0f} |")


if __name__ == "__main__":
    main()
