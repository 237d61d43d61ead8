"""Read a run folder into a `Report`: every figure that is shown comes from the files that the stages left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import yaml

from quant.measures import Answers, by_question
from quant.records import evaluated
from quant.statistics import Interval, interval, ratio
from quant.tasks.questions import Question
from rpam_lite import run_files
from rpam_lite.checkpoint.files import all_rows, read_json
from rpam_lite.checkpoint.hub import readable_name
from rpam_lite.errors import RpamError
from rpam_lite.recipe import OURS, Recipe
from rpam_lite.report.answers import choose_examples
from rpam_lite.report.commands import Use
from rpam_lite.report.data import (
    LONG,
    SHORT,
    Digest,
    File,
    FitLog,
    Headline,
    Lambdas,
    Licence,
    Origin,
    Parent,
    Report,
    Row,
    Spread,
    StageRun,
)
from rpam_lite.report.licences import read_licence

# The headline's file may lose so much accuracy to the unquantized one.
HEADLINE_LOSS = 0.01
_TRIP = "check label capture fit statistics merge export imatrix quantize divergence eval"
_IN_LAYER = re.compile(r"layers\.(\d+)\.?(.*)")


def gather_origin(recipe: Recipe, recorded: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Origin:
    """What the merge was made from.

    Args:
        recipe: The recipe, its parents being folders.
        recorded: What config.json records of the merge's origin.
        findings: Preflight's, of which the warnings are told.
    """
    parents = []
    for role in ("long", "short", "base"):
        folder = getattr(recipe.parents, role)
        if folder is not None and role in recorded:
            licence = read_licence(folder) if folder.is_dir() else Licence("unknown")
            parents.append(Parent(role, recorded[role]["name"], recorded[role]["sha256"], licence))
    options = ", ".join(f"{name} {value:g}" for name, value in recipe.merge.options.items())
    fitted = recipe.merge.method == OURS
    row = ", a decision row in the head" if recipe.family.decides else ""
    preset = f" (preset {recipe.fit.preset}, one lambda a {recipe.fit.granularity}{row})" if fitted else ""
    if fitted and recipe.fit.preset == "release":
        preset = " (preset release, one lambda a weight)"
    return Origin(
        name=recipe.name,
        version=recorded["version"],
        method=recipe.merge.method + preset + (f" with {options}" if options else ""),
        is_fitted=fitted,
        parents=parents,
        donor=recorded["donor"],
        dtype=recorded["dtype"],
        differences=[
            (f["code"], without_paths(f"{f['message']} The merge: {f['effect']}.", recipe))
            for f in findings
            if f["level"] == "WARNING"
        ],
    )


def gather(
    recipe: Recipe,
    run: Path,
    merged: Path,
    questions: Mapping[str, Question],
    digests: Sequence[Digest] = (),
    use: Use | None = None,
) -> Report:
    """Everything of a finished run.

    Args:
        recipe: Of the run.
        run: Its folder.
        merged: The merged checkpoint in it.
        questions: Those of the evaluation, by key.
        digests: Of the files that are passed on.
        use: How other programs run the merge.

    Raises:
        RpamError: A file is missing or damaged; the message names it.
    """
    evaluation = read_json(run / run_files.EVALUATION, "the evaluation")
    rows = evaluation["rows"]
    recorded = read_json(merged / "config.json", "the merged config")["rpam_lite"]
    fitted = recipe.merge.method == OURS
    files = _files(recipe, run, rows)
    told = headline_file(files)
    short, long, merge = (
        evaluated(run / "eval" / row["records"], evaluation["questions"])
        for row in (*(next(r for r in rows if r["name"] == name) for name in (SHORT, LONG)), told.row)
    )
    return Report(
        origin=gather_origin(recipe, recorded, _optional(run / run_files.FINDINGS).get("findings", [])),
        rows=rows,
        questions=evaluation["questions"],
        long_think_tokens=recipe.eval.long_think_tokens,
        max_tokens=recipe.eval.max_tokens,
        headline=_headline(told, files[0].size, by_question(merge), by_question(long), recipe.seed),
        files=files,
        imatrix=recipe.quantize.imatrix,
        labels=_labels(run / run_files.PATTERNS),
        lambdas=lambdas_of(read_json(run / run_files.COEFFICIENTS, "the coefficients file")) if fitted else None,
        fit=fit_log(read_json(run / run_files.FIT_LOG, "the fit's log")) if fitted else None,
        dial=(_optional(run / run_files.FRONTIER) or None) if fitted else None,
        proofs=_proofs(run),
        examples=choose_examples(questions, short, long, merge, recipe.eval.long_think_tokens),
        stages=_stages(run),
        environment=_environment(run / "eval" / run_files.MANIFEST),
        digests=digests,
        recipe=recipe_text(recipe, run),
        use=use,
    )


def headline_file(files: Sequence[File]) -> File:
    """The smallest file that loses at most `HEADLINE_LOSS` of accuracy to the unquantized one, the first."""
    good = [f for f in files if f.row["accuracy"] >= files[0].row["accuracy"] - HEADLINE_LOSS - 1e-9]
    return min(good, key=lambda f: f.size)


def lambdas_of(coefficients: Mapping[str, Any]) -> Lambdas:
    """The contents of coefficients.json by part and layer."""
    parts: dict[str, dict[int, Spread]] = {}
    others = {}
    for group, value in coefficients["values"].items():
        if match := _IN_LAYER.fullmatch(group):
            parts.setdefault(match[2], {})[int(match[1])] = _spread(value)
        else:
            others[group] = _spread(value)
    layers = 1 + max((layer for part in parts.values() for layer in part), default=-1)
    return Lambdas(coefficients["granularity"], layers, parts, others)


def fit_log(log: Mapping[str, Any]) -> FitLog:
    """The contents of fit.json; terms that are always 0 are left out."""
    steps = log["steps"]
    names = [name for name in (steps[0] if steps else {}) if any(step[name] for step in steps)]
    curves = {name: [float(step[name]) for step in steps] for name in sorted(names, key=lambda n: n == "loss")}
    if len(curves) == 2 and len({tuple(curve) for curve in curves.values()}) == 1:
        curves.pop("loss", None)  # it is that one term alone
    return FitLog(curves, log.get("layers") or [], log.get("stopped") or "", log.get("warning") or "")


def recipe_text(recipe: Recipe, run: Path) -> str:
    """The recipe as YAML: what differs from the defaults, with names in the place of this machine's folders."""
    drawn = _optional(run / run_files.QUESTION_SETS).get("asked", {})
    told = recipe.model_dump(mode="json", exclude_defaults=True)
    parents = recipe.parents
    told["parents"] = {
        role: readable_name(folder)
        for role in ("long", "short", "base")
        if (folder := getattr(parents, role)) is not None
    }
    for section in ("label", "eval"):
        file = getattr(recipe, section).file
        # What was drawn of data sets is named as the recipe had it.
        told[section]["questions"] = drawn[section] if file.parent == run / "questions" else file.name
    return yaml.safe_dump({"version": recipe.version} | told, sort_keys=False, allow_unicode=True, width=76)


def without_paths(text: str, recipe: Recipe) -> str:
    """A text with short names in the place of this machine's folders."""
    named = {role: getattr(recipe.parents, role) for role in ("long", "short", "base")}
    named |= {file.name: file for file in (recipe.label.file, recipe.eval.file)}
    for name, path in named.items():
        text = text.replace(str(path), name) if path is not None else text
    return text


def _files(recipe: Recipe, run: Path, rows: Sequence[Row]) -> list[File]:
    """The unquantized GGUF file and the quantized ones."""
    divergences = _optional(run / run_files.DIVERGENCE).get("files", {})
    row = {r["name"]: r for r in rows}
    whole: str = recipe.export.type
    listed = [(whole, run / run_files.exported_name(recipe), f"Merge {whole.lower()}")]
    listed += [(t, run / run_files.quantized_name(recipe, t), f"Merge {t}") for t in recipe.quantize.types]
    return [
        File(kind, file.name, _size(file), row[name], divergences.get(kind) if i else None)
        for i, (kind, file, name) in enumerate(listed)
    ]


def _size(file: Path) -> int:
    """Bytes of a stage's file; of one that `rpam clean` removed, what it had."""
    if file.exists():
        return file.stat().st_size
    removed = _optional(file.parent / run_files.MANIFEST).get("removed", {})
    if file.name not in removed:
        raise RpamError(f"{file}: is missing; `rpam run` makes it again.")
    return int(removed[file.name])


def _headline(file: File, whole_size: int, merge: Answers, long: Answers, seed: int) -> Headline:
    kept = interval(np.stack([merge.correct.mean(1), long.correct.mean(1)], axis=1), ratio, seed=seed)
    used = interval(np.stack([merge.tokens.mean(1), long.tokens.mean(1)], axis=1), ratio, seed=seed)
    saved = Interval(1 - used.value, 1 - used.high, 1 - used.low, seed)
    return Headline(file.row, kept, saved, file.size, whole_size)


def _spread(value: float | Sequence[float]) -> Spread:
    if isinstance(value, Sequence):
        return Spread(fmean(value), pstdev(value), min(value), max(value), len(value))
    return Spread(value, 0.0, value, value)


def _labels(patterns: Path) -> dict[str, int]:
    rows = all_rows(patterns, "run `rpam label` again") if patterns.exists() else []
    counts = Counter(row["label"] or "dropped" for row in rows)
    return {name: counts[name] for name in ("long", "short", "dropped") if counts}


def _proofs(run: Path) -> list[str]:
    """What merge and export have verified, in sentences."""
    sentences = []
    if tensors := _optional(run / run_files.VERIFIED).get("tensors"):
        compared = sum(tensor["compared"] for tensor in tensors)
        sentences.append(f"Merged checkpoint: {compared:,} values of {len(tensors)} tensors computed anew, none off.")
    for file in sorted((run / "export").glob("*.proof.json")):
        proof = _optional(file)
        logits = "" if proof["difference"] is None else f" logits within {proof['difference']:.1g} of transformers',"
        sentences.append(
            f"{proof['file']}: loaded in llama.cpp, {proof['tokens']} tokens cut as the tokenizer does,{logits} "
            f"{proof['values']:,} values read back, none off."
        )
    return sentences


def _stages(run: Path) -> list[StageRun]:
    """Finished stages in the order of the trip."""
    found = [_optional(run / name / run_files.MANIFEST) for name in _TRIP.split()]
    return [StageRun(m["stage"], m["seconds"]) for m in found if m]


def _environment(manifest: Path) -> dict[str, str]:
    """What the evaluation ran on, as its manifest says."""
    told = _optional(manifest)
    named = {"machine": told.get("machine"), "Python": told.get("python"), **told.get("packages", {})}
    return {name: value for name, value in named.items() if value}


def _optional(file: Path) -> dict[str, Any]:
    """A JSON file that a recipe may do without; empty then."""
    return read_json(file, "a file of the run") if file.exists() else {}
