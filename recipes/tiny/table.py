"""Print what the embedded pair can do on held-out questions, by level, and check what is promised.

    python -m recipes.tiny.table

Every checkpoint is exported to GGUF (f16) and asked in llama.cpp: `long` and `short` greedily,
`base` with its own distribution (temperature 1), which shows how it mixes both styles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from pathlib import Path

from export.gguf.write import write_gguf
from quant.engines import Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.records import Record, to_record
from quant.summary import summarize, summarize_by_level
from quant.tasks.questions import Question
from recipes.tiny.questions import draw_questions
from rpam_lite.checkpoint.source import CheckpointSource

MAX_TOKENS, LONG_THINK_TOKENS = 320, 8


def measure(checkpoint: Path, questions: list[Question], temperature: float, threads: int) -> list[Record]:
    """One answer to every question, graded."""
    by_key = {q.key: q for q in questions}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        source = CheckpointSource(checkpoint)
        write_gguf(source, source.config, checkpoint, file, "F16", checkpoint.name)
        with LlamaCppEngine(file, parallel=32, threads=threads) as engine:
            requests = [
                Request(q.key, engine.chat_prompt(q.question), MAX_TOKENS, Sampling(temperature, seed=_seed(q.key)))
                for q in questions
            ]
            return [to_record(c, by_key[c.key]) for c in engine.generate(requests)]


def _seed(key: str) -> int:
    return zlib.crc32(key.encode())


def promises(records: dict[str, list[Record]]) -> dict[str, bool]:
    """What must hold of the pair, and whether it does."""
    long = summarize_by_level(records["long"], LONG_THINK_TOKENS)
    short = summarize_by_level(records["short"], LONG_THINK_TOKENS)
    base = [s.long for s in summarize_by_level(records["base"], LONG_THINK_TOKENS).values()]
    ratio = summarize(records["long"], LONG_THINK_TOKENS).tokens / summarize(records["short"], LONG_THINK_TOKENS).tokens
    return {
        "long is right on >= 95 % at every level": all(s.accuracy >= 0.95 for s in long.values()),
        "short is right on >= 95 % at levels 1 and 2": all(short[level].accuracy >= 0.95 for level in (1, 2)),
        "short is right on <= 40 % at levels 7 and 8": all(short[level].accuracy <= 0.40 for level in (7, 8)),
        f"mean tokens of long are >= 8 times those of short ({ratio:.1f})": ratio >= 8,
        "base thinks long more often on harder questions": base[0] < 0.5 < base[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table of the embedded pair.")
    parser.add_argument("--pair", type=Path, default=Path("recipes/tiny"), help="folder with base/ long/ short/")
    parser.add_argument("--per-level", type=int, default=100, help="held-out questions a level")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    questions = [
        Question(str(i), question, str(problem.answer), problem.level)
        for i, (problem, question) in enumerate(draw_questions("evaluation", args.per_level, seed=1))
    ]
    records = {
        name: measure(args.pair / name, questions, 1.0 if name == "base" else 0.0, args.threads)
        for name in ("long", "short", "base")
    }
    levels = sorted({q.level for q in questions})
    print("| | all | " + " | ".join(f"level {level}" for level in levels) + " |")
    print("|---|---:|" + "---:|" * len(levels))
    for name, field, scale in (
        ("long", "accuracy", 100),
        ("short", "accuracy", 100),
        ("long", "tokens", 1),
        ("short", "tokens", 1),
        ("base", "long", 100),
    ):
        summaries = [summarize(records[name], LONG_THINK_TOKENS)]
        summaries += summarize_by_level(records[name], LONG_THINK_TOKENS).values()
        title = {"accuracy": "right, %", "tokens": "mean tokens", "long": "long answers (sampled), %"}[field]
        print(f"| {name}: {title} | " + " | ".join(f"{scale * getattr(s, field):.1f}" for s in summaries) + " |")
    held = promises(records)
    for promise, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}: {promise}")
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
