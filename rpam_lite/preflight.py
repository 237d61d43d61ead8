"""Everything that is wrong with a recipe and its pair, all at once, before any work.

Reads configs, safetensors headers, tokenizers and question files; no weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from export.gguf.architectures import check_names, rope_theta
from export.gguf.tokenizer import check_tokenizer
from export.gguf.write import EMBEDDING
from quant.gguf import quantization_types
from quant.tasks.questions import load_questions
from rpam_lite.checkpoint.pair import open_parent
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.checkpoint.vocabulary import chat_template, differing_tokens, tokens_by_id
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe

# Config fields that must agree, or the merged weights would be read by a model they do not fit.
SAME_SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "tie_word_embeddings",
)
# Fields that may differ: the donor's value is kept.
DONATED = ("max_position_embeddings", "eos_token_id", "bos_token_id", "pad_token_id", "sliding_window")


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad, a stable code, and a sentence."""

    level: Literal["ERROR", "WARNING", "INFO"]
    code: str
    message: str


def check(recipe: Recipe, run_folder: Path) -> list[Finding]:
    """All findings about the recipe, its checkpoints and question files, and the machine."""
    findings: list[Finding] = []
    folders = {"long": recipe.parents.long, "short": recipe.parents.short}
    if recipe.parents.base is not None:
        folders["base"] = recipe.parents.base
    sources: dict[str, ParentSource] = {}
    for name, folder in folders.items():
        opened = _attempt(findings, "checkpoint", partial(open_parent, folder, recipe.parents.base))
        if opened is not None:
            sources[name] = opened
    for source in sources.values():
        findings += _check_exportable(source)
    if "long" in sources:
        for name in sources.keys() - {"long"}:
            findings += _compare(sources["long"], sources[name])
    if recipe.merge.donor in sources:
        findings += _check_template(sources[recipe.merge.donor].folder)
    findings += _check_questions(recipe)
    findings += _check_quantization(recipe.quantize.types)
    findings += _check_disk(list(sources.values()), run_folder)
    return list(dict.fromkeys(findings))


def _attempt(findings: list[Finding], code: str, action: Callable[[], Any]) -> Any:
    """The action's result; None, with its error kept as a finding, if it fails."""
    try:
        return action()
    except RpamError as error:
        findings.append(Finding("ERROR", code, str(error)))
    except OSError as error:
        findings.append(Finding("ERROR", code, f"{error.filename}: {error.strerror}; check path and permissions."))
    return None


def _check_exportable(source: ParentSource) -> list[Finding]:
    """What would stop the GGUF export, which comes late, or the sampling of the parents."""
    findings: list[Finding] = []
    _attempt(findings, "architecture", partial(check_names, source, source.config, source.folder))
    if EMBEDDING in source.names():
        _attempt(findings, "tokenizer", partial(check_tokenizer, source.folder, source.shape(EMBEDDING)[0]))
    return findings


def _check_template(donor: Path) -> list[Finding]:
    findings: list[Finding] = []
    template = _attempt(findings, "tokenizer", partial(chat_template, donor))
    if template is None and not findings:
        message = f"{donor}: has no chat template, so the merge could not be asked anything; add one, or name the "
        findings.append(Finding("ERROR", "template", message + "other parent as `merge.donor`."))
    return findings


def _check_quantization(types: tuple[str, ...]) -> list[Finding]:
    known = quantization_types()
    message = "`quantize.types`: llama.cpp has no type {!r}; it has {}."
    return [
        Finding("ERROR", "quantize", message.format(name, ", ".join(sorted(known))))
        for name in types
        if name not in known
    ]


def _compare(one: ParentSource, other: ParentSource) -> Iterator[Finding]:
    """Findings about two checkpoints that are to be merged."""
    where = f"{one.folder} and {other.folder}"
    for field in SAME_SHAPE:
        a, b = one.config.get(field), other.config.get(field)
        if a != b:
            yield Finding(
                "ERROR", "shape", f"{where}: `{field}` is {a!r} and {b!r}; only models of one architecture merge."
            )
    for field in DONATED:
        a, b = one.config.get(field), other.config.get(field)
        if a != b:
            yield Finding("WARNING", "config", f"{where}: `{field}` is {a!r} and {b!r}; the donor's is kept.")
    findings: list[Finding] = []
    thetas = [_attempt(findings, "rope", partial(rope_theta, s.config, s.folder)) for s in (one, other)]
    yield from findings
    if not findings and thetas[0] != thetas[1]:
        yield Finding("ERROR", "rope", f"{where}: rope_theta is {thetas[0]} and {thetas[1]}; they can't be merged.")
    yield from _compare_tensors(one, other, where)
    yield from _compare_vocabularies(one.folder, other.folder, where)


def _compare_tensors(one: ParentSource, other: ParentSource, where: str) -> Iterator[Finding]:
    lone = sorted(set(one.names()) ^ set(other.names()))
    if lone:
        yield Finding("ERROR", "tensors", f"{where}: only one of them has {_some(lone)}.")
    for name in sorted(set(one.names()) & set(other.names())):
        if one.shape(name) != other.shape(name):
            yield Finding("ERROR", "tensors", f"{where}: {name} has shape {one.shape(name)} and {other.shape(name)}.")
    for source in (one, other):
        dtypes = {str(source.dtype(name)).removeprefix("torch.") for name in source.names()}
        strange = sorted(dtypes - {"bfloat16", "float16", "float32"})
        if strange:
            yield Finding(
                "ERROR", "dtype", f"{source.folder}: holds {_some(strange)} tensors; use the unquantized checkpoint."
            )


def _compare_vocabularies(one: Path, other: Path, where: str) -> Iterator[Finding]:
    findings: list[Finding] = []
    tokens = [_attempt(findings, "tokenizer", partial(tokens_by_id, f)) for f in (one, other)]
    templates = [_attempt(findings, "tokenizer", partial(chat_template, f)) for f in (one, other)]
    yield from dict.fromkeys(findings)
    if findings:
        return
    differing = differing_tokens(*tokens)
    if differing:
        i = differing[0]
        yield Finding(
            "ERROR",
            "vocabulary",
            f"{where}: {len(differing)} token ids mean different tokens (id {i} is {tokens[0].get(i)!r} and "
            f"{tokens[1].get(i)!r}); merging such rows mixes unrelated tokens.",
        )
    if templates[0] != templates[1]:
        yield Finding("WARNING", "template", f"{where}: the chat templates differ; the donor's is kept.")


def _check_questions(recipe: Recipe) -> list[Finding]:
    findings: list[Finding] = []
    calibration = _attempt(findings, "questions", lambda: load_questions(recipe.label.questions))
    evaluation = _attempt(findings, "questions", lambda: load_questions(recipe.eval.questions))
    if calibration and evaluation:
        shared = {_plain(q.question) for q in calibration} & {_plain(q.question) for q in evaluation}
        if shared:
            findings.append(
                Finding(
                    "ERROR",
                    "overlap",
                    f"{recipe.label.questions} and {recipe.eval.questions}: share {len(shared)} questions "
                    f"(such as {min(shared)!r}); calibrating on what is measured afterwards proves nothing.",
                )
            )
    return findings


def _check_disk(sources: list[ParentSource], run_folder: Path) -> list[Finding]:
    """A run writes, in 16-bit: the merge, its GGUF, both parents' GGUFs, one baseline; and the quantized ones."""
    existing = next(p for p in (run_folder.resolve(), *run_folder.resolve().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        return [Finding("ERROR", "disk", f"{existing}: no permission to write; choose another folder with --runs.")]
    weights = max((sum(f.stat().st_size for f in s.folder.glob("*.safetensors")) for s in sources), default=0)
    needed, free = 7 * weights, shutil.disk_usage(existing).free
    if free < needed:
        return [Finding("ERROR", "disk", f"{existing}: {free} bytes are free and a run needs about {needed}.")]
    return []


def _plain(question: str) -> str:
    return " ".join(question.lower().split())


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
