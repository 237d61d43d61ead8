"""The folder of a finished run with made-up answers: what report and cards read, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import yaml

from quant.adaptivity import measure_adaptivity
from quant.engines import Completion
from quant.frontier import gain_over_coin, gain_over_curve
from quant.measures import by_question, measure
from quant.records import Record, to_record, write_records
from quant.summary import summarize, summarize_by_level
from quant.tasks.questions import Question, read_task_file
from rpam_lite.checkpoint.files import write_json, write_text
from rpam_lite.preflight.questions import task_file
from rpam_lite.recipe import Recipe, load_recipe
from rpam_lite.report.commands import Use
from rpam_lite.report.data import Digest, Report
from rpam_lite.report.gather import gather

LONG_THINK, MAX_TOKENS, LAYERS = 4, 64, 3
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "input_layernorm")
TERMS = {"alignment": 0.0, "contrastive": 0.0, "kl": 1.0, "regularizer": 0.1}


def coefficients(granularity: str, layers: int = LAYERS) -> dict[str, Any]:
    """Contents of coefficients.json of any granularity."""
    if granularity == "scalar":
        return {"version": 1, "granularity": granularity, "weights": "long", "values": {"model": 0.4}}
    parts = {"layer": [""], "block": [".attention", ".mlp"]}.get(granularity, [f".{m}" for m in MATRICES])
    values: dict[str, Any] = {"embed_tokens": 0.5}
    for layer in range(layers):
        for i, part in enumerate(parts):
            value = (layer + i / len(parts)) / layers
            values[f"layers.{layer}{part}"] = [value, 1.0, 0.0] if granularity == "row" else value
    return {"version": 1, "granularity": granularity, "weights": "long", "values": values | {"norm": 1.2}}


def make_run(
    folder: Path,
    granularity: str = "layer",
    levels: bool = True,
    types: tuple[str, ...] = ("Q8_0", "Q4_K_M"),
    layers: int = LAYERS,
    dial: bool = False,
    say: Callable[[str], str] = lambda text: text,
    questions: int = 12,
    **changes: dict[str, Any],
) -> tuple[Recipe, Path]:
    """A recipe and the folder of its run.

    Args:
        folder: Gets both.
        granularity: Of the coefficients.
        levels: Whether the questions tell levels.
        types: Quantized files.
        layers: Decoder layers of the coefficients.
        dial: Whether a family was fitted.
        say: Changes whatever a model answers, and the questions.
        questions: How many there are.
        changes: Of sections of the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(folder, granularity, levels, types, say, questions, changes)
    run = folder / "runs" / recipe.name
    asked = read_task_file(task_file(recipe.eval))
    _write_eval(run / "eval", recipe, asked, say, dial)
    _write_files(run, recipe)
    if recipe.merge.method == "rpam":
        write_json(run / "fit" / "coefficients.json", coefficients(granularity, layers))
        steps = [{term: value / step for term, value in TERMS.items()} | {"loss": 1.1 / step} for step in (1, 2, 30)]
        log = {"version": 3, "way": "", "layers": [], "steps": steps, "stopped": "converged", "warning": None}
        write_json(run / "fit" / "fit.json", log)
    if dial:
        members = [
            {
                "kind": "price",
                "value": price,
                "name": f"price {price:g}",
                "label": f"{price:g}",
                "accuracy": 0.9,
                "tokens": tokens,
                "long": 0.5,
                "intervals": {"pass@1": [0.8, 1.0], "tokens": [tokens - 2, tokens + 2]},
            }
            for price, tokens in ((0.0, 30.0), (100.0, 20.0))
        ]
        stands: dict[str, Any] = {"questions": 9, "measured": True, "long": {"accuracy": 1.0, "tokens": 31.0}}
        wish = {"wish": "at most 1 point below Long", "index": 1, "met": False}
        write_json(run / "fit" / "frontier.json", {"version": 2, **stands, "members": members, **wish})
    return recipe, run


def report_of(recipe: Recipe, run: Path) -> Report:
    """What is gathered of it."""
    questions = {q.key: q for q in read_task_file(task_file(recipe.eval))}
    digests = [Digest(f"quantize/{recipe.name}-q4_k_m.gguf", 5, "ab" * 32)]
    file = f"{recipe.name}-q4_k_m.gguf"
    use = Use(recipe.name, recipe.name, file, f"Modelfile.{file[:-5]}", file, 64, 64, 0.6, 0.95, 20)
    return gather(recipe, run, run / "merge" / recipe.name, questions, digests, use)


def _recipe(
    folder: Path,
    granularity: str,
    levels: bool,
    types: tuple[str, ...],
    say: Callable[[str], str],
    questions: int,
    changes: dict[str, dict[str, Any]],
) -> Recipe:
    for parent in ("long", "short"):
        (folder / parent).mkdir(exist_ok=True)
    level = (lambda n: {"level": 1 + n % 3}) if levels else (lambda n: {})
    rows = [{"question": say(f"What is {n} + {n}?"), "answer": str(2 * n), **level(n)} for n in range(questions)]
    write_text(folder / "eval.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    raw: dict[str, Any] = {
        "version": 1,
        "name": "mine",
        "parents": {"long": "long", "short": "short"},
        "label": {"questions": "eval.jsonl"},
        "fit": {"granularity": granularity if granularity != "element" else "layer"},
        "quantize": {"types": list(types)},
        "eval": {
            "questions": "eval.jsonl",
            "max_tokens": MAX_TOKENS,
            "scalar_curve": [0.5],
            "long_think_tokens": LONG_THINK,
        },
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    write_text(folder / "mine.yaml", yaml.safe_dump(raw))
    return load_recipe(folder / "mine.yaml")


def _write_files(run: Path, recipe: Recipe) -> None:
    """Those of the other stages."""
    origin = {"version": "0.1", "method": recipe.merge.method, "donor": "long", "dtype": "float16"}
    parents = {role: {"name": role, "sha256": letter * 64} for role, letter in (("long", "a"), ("short", "b"))}
    write_json(run / "merge" / recipe.name / "config.json", {"rpam_lite": origin | parents})
    verified = [{"name": "w", "compared": 1234567, "flushed": 0.0}]
    write_json(run / "merge" / "verify.json", {"version": 1, "tensors": verified})
    write_text(run / "export" / f"{recipe.name}-f16.gguf", "x" * 1000)
    for i, name in enumerate(recipe.quantize.types):
        write_text(run / "quantize" / f"{recipe.name}-{name.lower()}.gguf", "x" * (500 - 200 * i))
    divergence = {"mean": 1e-3, "error": 1e-4, "median": 1e-5, "p99": 0.02, "same_top": 0.987}
    files = dict.fromkeys(recipe.quantize.types, divergence)
    write_json(run / "divergence" / "divergence.json", {"version": 1, "base": "f16", "files": files})
    patterns = [{"label": label} for label in ("long", "short", "short", None)]
    write_text(run / "label" / "patterns.jsonl", "".join(json.dumps(p) + "\n" for p in patterns))
    write_json(
        run / "eval" / "manifest.json", {"stage": "eval", "seconds": 61.0, "python": "3.11", "packages": {"torch": "2"}}
    )


def _write_eval(folder: Path, recipe: Recipe, questions: list[Question], say: Callable[[str], str], dial: bool) -> None:
    """evaluation.json and the records: Short is right on a third, Long thinks and is right, the merge is between."""
    names = {"Short": 0.0, "Long": 1.0, "Scalar 0.5": 0.5, "Merge f16": None}
    names |= {f"Merge {name}": None for name in recipe.quantize.types}
    names |= {"Price 0": None} if dial else {}  # the member that was not taken
    records = {name: [_record(name, i, q, say) for i, q in enumerate(questions)] for name in names}
    curve = [records[name] for name in ("Short", "Scalar 0.5", "Long")]
    rows = []
    for name, weight in names.items():
        file = f"records-{name.replace(' ', '-')}.jsonl"
        kind = (
            "member"
            if name.startswith("Price")
            else "merge"
            if weight is None
            else "scalar"
            if weight == 0.5
            else "parent"
        )
        row: dict[str, Any] = {"name": name, "kind": kind, "weight": weight}
        row |= asdict(summarize(records[name], LONG_THINK))
        row["intervals"] = _told(measure(by_question(records[name])))
        row["levels"] = {str(k): asdict(v) for k, v in summarize_by_level(records[name], LONG_THINK).items()}
        row["records"] = file
        if kind in ("merge", "member"):
            answers = [by_question(records[n]) for n in (name, "Short", "Long")]
            row["over_curve"] = asdict(gain_over_curve(records[name], curve))
            row["over_coin"] = asdict(gain_over_coin(records[name], records["Short"], records["Long"]))
            row["adaptivity"] = _told(measure_adaptivity(*answers, LONG_THINK, draws=50))
        rows.append(row)
        write_records(folder / file, records[name])
    write_json(folder / "evaluation.json", {"version": 2, "questions": len(questions), "rows": rows})


def _told(intervals: dict[str, Any]) -> dict[str, list[float] | None]:
    return {n: None if isnan(i.value) else [i.value, i.low, i.high] for n, i in intervals.items()}


def _record(name: str, i: int, question: Question, say: Callable[[str], str]) -> Record:
    # Of six questions: 0, 1 all are right, the merge brief; 2, 3 only who thinks is right, and the merge does;
    # 4 the merge thinks in vain; 5 it does not and is wrong.
    kind = i % 6
    easy = kind in (0, 1, 4)
    thinks = {"Short": False, "Long": True, "Scalar 0.5": i % 2 == 0}.get(name, kind in (2, 3, 4))
    right = thinks or easy
    answer = say(f"\\boxed{{{question.answer if right else '999'}}}")
    think = [b"<think>", *[say(f"so it is {i} ").encode()] * (8 + i), b"</think>"] if thinks else []
    pieces = (*think, answer.encode())
    return to_record(Completion(f"{question.key}/0", tuple(range(len(pieces))), pieces, "stop", len(pieces)), question)
