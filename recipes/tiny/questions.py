"""Questions of one family and split, with their levels, as JSON lines.

python -m recipes.tiny.questions calibration --per-level 64 --seed 1 --out calibration.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from recipes.tiny.arithmetic import MAX_START
from recipes.tiny.families import ARITHMETIC, FAMILIES, Family
from recipes.tiny.splits import LEVELS, Split


def draw_questions(
    split: Split, per_level: int, seed: int, max_start: int = MAX_START, family: Family = ARITHMETIC
) -> Iterator[tuple[Any, str]]:
    """`per_level` distinct questions of every level, easy ones first, with their problems."""
    rng = random.Random(f"{split}-{seed}")
    seen: set[str] = set()
    for level in LEVELS:
        drawn = 0
        while drawn < per_level:
            problem = family.draw(rng, level, split, max_start)
            question = family.ask(problem, rng)
            if question not in seen:
                seen.add(question)
                drawn += 1
                yield problem, question


def question_lines(split: Split, per_level: int, seed: int, family: Family = ARITHMETIC) -> str:
    """The contents of a question file."""
    rows = (
        {"question": question, "answer": str(problem.answer), "level": problem.level}
        for problem, question in draw_questions(split, per_level, seed, family=family)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write questions of one split as JSON lines.")
    parser.add_argument("split", choices=get_args(Split))
    parser.add_argument("--family", choices=sorted(FAMILIES), default="arithmetic")
    parser.add_argument("--per-level", type=int, required=True, help="questions a level")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write; standard output without it")
    args = parser.parse_args()
    text = question_lines(args.split, args.per_level, args.seed, FAMILIES[args.family])
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
