"""Siblings that choose between the parents as they run, on the embedded pair.

    python -m bench.siblings [--per-level 15]

Both parents become F16 files. On calibration questions the probe of Self-Route learns, from the Long parent's hidden
states, which questions the Short parent solves, and CAR's gate learns the perplexities of Short's answers. Then all
are asked the same held-out questions, decoded greedily. The oracle chooses after seeing the graded answers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.routing import car, learn, self_route
from bench.tiny import PAIR
from export.gguf.write import write_gguf
from quant.asking import answer_questions
from quant.engines import Engine
from quant.engines.llama_cpp import LlamaCppEngine
from quant.frontier import gain_over_curve
from quant.measures import by_question, measure
from quant.records import Record
from quant.siblings import oracle
from quant.tables import number, percent
from quant.tasks.questions import Question, load_questions
from rpam_lite.checkpoint.source import CheckpointSource

MAX_TOKENS = 320


def questions_of(split: str, per_level: int) -> list[Question]:
    """The first questions of each level."""
    questions = load_questions(PAIR / f"{split}.jsonl")
    levels = sorted({q.level for q in questions})
    return [q for level in levels for q in [q for q in questions if q.level == level][:per_level]]


def open_parent(folder: Path, parent: str) -> LlamaCppEngine:
    """A parent as an F16 file, loaded."""
    source = CheckpointSource(PAIR / parent)
    write_gguf(source, source.config, source.folder, folder / f"{parent}.gguf", "F16", "bench")
    return LlamaCppEngine(folder / f"{parent}.gguf", threads=1)


def row(name: str, records: Sequence[Record], mixed: Sequence[Sequence[Record]]) -> str:
    """One line of the table; `mixed` are the two that a coin could choose between."""
    found = measure(by_question(records))
    gain = gain_over_curve(records, mixed)
    above = f"{100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return f"| {name} | {percent(found['pass@1'])} | {number(found['tokens'])} | {above} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Self-Route, CAR and the oracle on the embedded pair.")
    parser.add_argument("--per-level", type=int, default=15)
    per_level = parser.parse_args().per_level
    calibration, held_out = (questions_of(split, per_level) for split in ("calibration", "evaluation"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with open_parent(folder, "long") as long, open_parent(folder, "short") as short:
            rules = learn(long, short, calibration, MAX_TOKENS)
            probe, gate = rules.probe, rules.gate
            engines: dict[str, Engine] = {
                "Long": long,
                "Short": short,
                "Self-Route": self_route(long, short, rules),
                "CAR": car(long, short, rules),
            }
            records = {
                name: answer_questions(engine, held_out, folder / f"{name}.jsonl", MAX_TOKENS)
                for name, engine in engines.items()
            }
    print(
        f"{len(calibration)} calibration and {len(held_out)} held-out questions, greedy, at most {MAX_TOKENS} tokens; "
        f"the probe tells {probe.accuracy:.1%} of the labels in cross-validation, always the commoner one "
        f"{probe.majority:.1%}; perplexity of right short answers {gate.right_mean:.2f} ± {gate.right_spread:.2f}, of "
        f"wrong ones {gate.wrong_mean:.2f} ± {gate.wrong_spread:.2f}"
    )
    print("\n| | accuracy, % | mean tokens | points above choosing by a coin, at the same mean tokens |")
    print("|---|---:|---:|---:|")
    ends = [records["Short"], records["Long"]]
    for name, answered in {**records, "oracle": oracle(records["Long"], records["Short"])}.items():
        print(row(name, answered, ends))


if __name__ == "__main__":
    main()
