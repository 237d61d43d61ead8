"""What adaptive sampling saves: labels and tokens against a fixed k = 12, simulated and on the embedded pair.

    python -m bench.labels [--questions 96] [--threads 1] [--simulated 4000]

Seeds belong to samples, so what adaptive sampling draws is a part of what fixed sampling draws: the
embedded pair answers k times, and adaptive sampling is replayed on these answers for every probability.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from export.gguf.write import write_gguf
from quant.engines import Engine, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.tasks.questions import load_questions
from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.patterns.adaptive import Row, draw_in_rounds, drawn, forecast, is_settled
from rpam_lite.patterns.rule import Rule, rule_of
from rpam_lite.patterns.samples import Sampler

TINY = Path(__file__).parents[1] / "recipes" / "tiny"
SAMPLES, MAX_TOKENS, PARALLEL = 12, 320, 32
RULES = (rule_of("strict"), rule_of("ada-r1"), rule_of("release"), rule_of("cost", 200.0))
Stored = dict[str, dict[str, list[Row]]]


def simulated(count: int, seed: int = 1) -> Stored:
    """Answers of two parents of mixed accuracies: both right, Long alone, neither, and anything between.

    Long's answers have 60 to 200 tokens, Short's 5 to 20.
    """
    rng = random.Random(seed)
    kinds: list[Callable[[], tuple[float, float]]] = [
        lambda: (0.97, 0.95),
        lambda: (0.95, 0.05),
        lambda: (0.02, 0.01),
        lambda: (rng.betavariate(4, 2), rng.betavariate(2, 3)),
        lambda: (rng.random(), rng.random()),
    ]
    stored: Stored = {"long": {}, "short": {}}
    for i in range(count):
        accuracies = rng.choices(kinds, [40, 20, 10, 15, 15])[0]()
        for (parent, tokens), accuracy in zip((("long", (60, 200)), ("short", (5, 20))), accuracies, strict=True):
            stored[parent][str(i)] = [
                {"correct": rng.random() < accuracy, "tokens": rng.randint(*tokens)} for _ in range(SAMPLES)
            ]
    return stored


def embedded(count: int, threads: int, folder: Path) -> Stored:
    """Every k-th answer of the embedded pair to `count` of its calibration questions, all levels alike."""
    every = load_questions(TINY / "calibration.jsonl")
    questions = [every[i * len(every) // count] for i in range(count)]
    long, short, donor = open_pair(TINY / "long", TINY / "short", None, "long")
    stored: Stored = {}
    for name, source in (("long", long), ("short", short)):
        file = folder / f"{name}.gguf"
        write_gguf(source, donor.config, donor.folder, file, "F16", name)

        @contextmanager
        def open_engine(file: Path = file) -> Iterator[Engine]:
            with LlamaCppEngine(file, PARALLEL, threads) as engine:
                yield engine

        with LlamaCppEngine(file, threads=threads) as engine:
            prompts = {q.key: engine.chat_prompt(q.question) for q in questions}
        sampling = Sampling(0.6, 0.95, 20, seed=1)
        with Sampler(open_engine, questions, prompts, sampling, MAX_TOKENS, folder / f"{name}.jsonl") as sampler:
            rows = sampler.draw([f"{q.key}/{i}" for q in questions for i in range(SAMPLES)])
        stored[name] = {q.key: [r for r in rows if r["question"] == q.key] for q in questions}
    return stored


def replay(stored: Stored, rule: Rule, stop_probability: float | None) -> Stored:
    """What would have been drawn of the stored answers; all where there is no probability."""

    def draw(parent: str, keys: list[str]) -> list[Row]:
        return [stored[parent][key.partition("/")[0]][int(key.partition("/")[2])] for key in keys]

    def settled(long: list[Row], short: list[Row], limit: float) -> bool:
        seen = drawn(long), drawn(short)
        return is_settled(forecast(rule, *seen, SAMPLES, MAX_TOKENS), *seen, limit)

    stop = None if stop_probability is None else partial(settled, limit=stop_probability)
    draws = {parent: partial(draw, parent) for parent in stored}
    return draw_in_rounds(list(stored["long"]), SAMPLES, draws, stop, PARALLEL)


def compare(stored: Stored, rule: Rule, stop_probability: float) -> str:
    """A row of the table."""
    seen = replay(stored, rule, stop_probability)

    def labels(found: Stored) -> list[str | None]:
        return [
            forecast(rule, drawn(found["long"][key]), drawn(found["short"][key]), SAMPLES, MAX_TOKENS).label
            for key in found["long"]
        ]

    def tokens(found: Stored, parent: str) -> int:
        return sum(row["tokens"] for rows in found[parent].values() for row in rows)

    fixed, adaptive = labels(stored), labels(seen)
    same = sum(a == b for a, b in zip(fixed, adaptive, strict=True)) / len(fixed)
    share = sum(tokens(seen, p) for p in seen) / sum(tokens(stored, p) for p in stored)
    parents = [sum(len(rows) for rows in seen[p].values()) / len(fixed) for p in ("long", "short")]
    return (
        f"| {rule.name} | {stop_probability:g} | {100 * same:.2f} % | {share:.3f} | "
        f"{parents[0]:.1f} | {parents[1]:.1f} | {'/'.join(str(fixed.count(x)) for x in ('long', 'short', None))} |"
    )


def table(stored: Stored, what: str) -> None:
    """Print one table."""
    print(f"\n{what}, k = {SAMPLES}\n")
    print("| rule | stop probability | labels equal | tokens / fixed | Long's samples | Short's | long/short/dropped |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for rule in RULES:
        for stop_probability in (0.0, 0.01, 0.05):
            print(compare(stored, rule, stop_probability))


def main() -> None:
    parser = argparse.ArgumentParser(description="Adaptive against fixed sampling.")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simulated", type=int, default=4000)
    args = parser.parse_args()
    table(simulated(args.simulated), f"{args.simulated} simulated questions")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stored = embedded(args.questions, args.threads, Path(folder))
    seconds = time.monotonic() - begin
    table(stored, f"Embedded pair, {args.questions} questions, {seconds:.0f} s on {args.threads} thread(s)")


if __name__ == "__main__":
    main()
