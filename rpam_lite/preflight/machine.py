"""Findings about the machine: room on the disk for every stage, memory for capture and fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import size_text
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.errors import RpamError
from rpam_lite.fit.setup import with_coefficients
from rpam_lite.merge.methods import method_of
from rpam_lite.platform import resident_memory
from rpam_lite.preflight.findings import Finding
from rpam_lite.recipe import OURS, Recipe
from rpam_lite.streaming.choice import choose, describe
from rpam_lite.streaming.machine import budget_of, device_of
from rpam_lite.streaming.plan import model_size
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.work import assumed_tokens, estimated_work, traces_of

# Bits a weight of llama.cpp's common types; others are taken as 16.
_BITS = {
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.6,
    "Q4_K_M": 4.9,
    "Q4_K_S": 4.7,
    "Q3_K_M": 4.0,
    "Q2_K": 3.4,
}


def check_disk(source: ParentSource, config: Any, recipe: Recipe, run_folder: Path) -> Iterator[Finding]:
    """Whether every stage has room for its files."""
    existing = next(p for p in (run_folder.resolve(), *run_folder.resolve().parents) if p.exists())
    if not existing.is_dir():
        message = f"{existing}: is a file where a folder should be; choose another folder with --runs."
        yield Finding("ERROR", "disk", message)
        return
    if not os.access(existing, os.W_OK):
        message = f"{existing}: no permission to write; choose another folder with --runs."
        yield Finding("ERROR", "disk", message)
        return
    stages = bytes_by_stage(sum(prod(source.shape(name)) for name in source.names()), config, recipe)
    there = sum(f.stat().st_size for f in run_folder.rglob("*") if f.is_file())
    needed, free = max(0, sum(stages.values()) - there), shutil.disk_usage(existing).free
    listed = ", ".join(f"{stage} {size_text(size)}" for stage, size in stages.items())
    message = f"{existing}: {size_text(free)} are free; a run needs about {size_text(needed)}"
    message += f" beside the {size_text(there)} that are there ({listed})." if there else f" ({listed})."
    yield Finding("ERROR" if free < needed else "INFO", "disk", message)


def bytes_by_stage(values: int, config: Any, recipe: Recipe) -> dict[str, int]:
    """What each stage will leave on the disk, about, of parents with so many parameters."""
    captured = recipe.merge.method == OURS or "capture" in method_of(recipe.merge.method, {})[0].needs
    hidden = config.hidden_size * config.num_hidden_layers if captured else 0
    parent = values * (4 if recipe.export.type == "F32" else 2)
    if recipe.family.decides and config.tie_word_embeddings:
        values += config.vocab_size * config.hidden_size  # the row that decides makes the head a tensor of its own
    merged = values * (4 if recipe.merge.dtype == "float32" else 2)
    gguf = values * (4 if recipe.export.type == "F32" else 2)
    kept = estimated_work(recipe, traces_of(recipe), assumed_tokens(recipe)).kept
    return {
        "label": 2 * parent,
        "capture": 2 * 2 * kept * hidden,
        "merge": merged,
        "export": gguf,
        "quantize": int(sum(values * _BITS.get(t, 16) / 8 for t in recipe.quantize.types)),
        "eval": gguf if recipe.eval.scalar_curve or len(recipe.family.settings) > 1 else 0,
    }


def check_memory(config: Any, stored: int, recipe: Recipe, run_folder: Path) -> Iterator[Finding]:
    """Which way of working capture and fit would take, of checkpoints with `stored` bytes a parameter."""
    questions, tokens = traces_of(recipe), assumed_tokens(recipe)
    try:
        device = device_of(recipe.memory)
        skeleton = Skeleton(config)
        work = with_coefficients(estimated_work(recipe, questions, tokens), skeleton, recipe.fit)
        budget = budget_of(recipe.memory, device, run_folder)
        plan = choose(model_size(skeleton, stored), work, budget, recipe.memory.fixed_codec, resident_memory())
    except RpamError as error:
        yield Finding("ERROR", "memory", str(error), key="memory")
        return
    place = "host" if device.type == "cpu" else "device"
    what = "answers" if recipe.family.settings else "questions"
    message = f"{questions} {what} of {tokens} tokens need {size_text(plan.total(place))} of {place} memory."
    yield Finding("INFO", "memory", message, f"would keep {describe(plan.way)}", "memory")
