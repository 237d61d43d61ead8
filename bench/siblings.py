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
from functools import partial
from pathlib import Path

from bench.tiny import PAIR
from export.gguf.write import write_gguf
from quant.asking import answer_questions
from quant.engines import Engine, Request
from quant.engines.llama_cpp import LlamaCppEngine
from quant.frontier import gain_over_curve
from quant.measures import by_question, measure
from quant.records import Record, to_record
from quant.siblings import (
    CarEngine,
    RoutedEngine,
    Way,
    fit_gate,
    fit_probe,
    last_hidden_states,
    oracle,
    perplexity,
)
from quant.siblings.probe import Mode
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


def short_answers(short: LlamaCppEngine, questions: Sequence[Question]) -> tuple[list[float | None], list[bool]]:
    """Perplexity (None of an empty answer) and verdict of the short answer to each question."""
    asked = [Request(q.key, short.chat_prompt(q.question), MAX_TOKENS, logprobs=True) for q in questions]
    done = {c.key: c for c in short.generate(asked)}
    return [perplexity(done[q.key]) for q in questions], [to_record(done[q.key], q).correct for q in questions]


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
            states = partial(last_hidden_states, long)
            perplexities, correct = short_answers(short, calibration)
            labels: list[Mode] = ["short" if right else "long" for right in correct]
            probe = fit_probe(states([long.chat_prompt(q.question) for q in calibration]), labels)
            gate = fit_gate(perplexities, correct)
            engines: dict[str, Engine] = {
                "Long": long,
                "Short": short,
                "Self-Route": RoutedEngine(Way(long), Way(short), probe, states),
                "CAR": CarEngine(Way(short), Way(long), gate),
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
