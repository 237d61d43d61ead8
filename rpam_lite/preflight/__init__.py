"""Everything that is wrong with a recipe and its pair, all at once, before any work.

Reads configs, safetensors headers, tokenizers and question files; no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from export.gguf.architecture import check_names
from export.gguf.tokenizer import check_tokenizer
from quant.gguf import quantization_types
from rpam_lite.checkpoint.aligned import EMBEDDING
from rpam_lite.checkpoint.pair import open_pair, open_parent, stored_bytes
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.device import choose_device
from rpam_lite.errors import some
from rpam_lite.merge.methods import method_of
from rpam_lite.preflight.configs import compare_configs, quantized_leftover
from rpam_lite.preflight.engine import check_engine
from rpam_lite.preflight.findings import Finding, attempt
from rpam_lite.preflight.machine import check_disk, check_memory
from rpam_lite.preflight.questions import check_questions
from rpam_lite.preflight.tensors import check_range, check_tensors
from rpam_lite.preflight.tokens import check_template, compare_generation, compare_templates, compare_vocabularies
from rpam_lite.recipe import OURS, Recipe
from rpam_lite.streaming.skeleton import load_config


def check(recipe: Recipe, run_folder: Path) -> list[Finding]:
    """All findings about the recipe, its checkpoints and question files, and the machine, the gravest first."""
    findings: list[Finding] = []
    sources: dict[str, ParentSource] = {}
    configs: dict[str, Any] = {}
    parents = recipe.parents
    for name, folder in (("long", parents.long), ("short", parents.short), ("base", parents.base)):
        if folder is not None and (
            opened := attempt(findings, "checkpoint", partial(open_parent, folder, parents.base))
        ):
            sources[name] = opened
    if parents.long.resolve() == parents.short.resolve():
        message = f"{parents.long}: is named as both parents, between which there is nothing to merge."
        findings.append(Finding("ERROR", "pair", message, "needs two models", "parents.short"))
    for name, source in sources.items():
        findings += quantized_leftover(source.config, source.folder)
        config = attempt(findings, "config", partial(load_config, source.folder))
        if config is not None:
            configs[name] = config
            findings += attempt(findings, "architecture", partial(check_tensors, source, config)) or []
        findings += _check_exportable(source)
    findings += _check_pair(recipe, sources, configs)
    findings += check_questions(recipe)
    findings += _check_context(recipe, configs)
    findings += _check_quantization(recipe.quantize.types)
    findings += _check_method(recipe)
    findings += check_range(list(sources.values()), recipe.merge.dtype)
    donor = recipe.merge.donor
    if recipe.label.engine != "gguf" and not any(f.level == "ERROR" for f in findings):
        pair = attempt(findings, "engine", partial(open_pair, parents.long, parents.short, parents.base, donor))
        if pair is not None:
            attempt(findings, "engine", partial(check_engine, recipe, pair))
    if donor in configs and not any(f.level == "ERROR" for f in findings):
        findings += check_disk(sources[donor], configs[donor], recipe, run_folder)
        if _is_streamed(recipe):
            findings += check_memory(configs[donor], stored_bytes(sources.values()), recipe, run_folder)
    order = {"ERROR": 0, "WARNING": 1, "INFO": 2}
    return sorted(dict.fromkeys(findings), key=lambda f: order[f.level])


def costs(recipe: Recipe, run_folder: Path) -> list[Finding]:
    """What a run needs of disk and memory, as findings, from headers and configs alone.

    Raises:
        RpamError: A parent can't be opened, or its architecture is not known.
    """
    parents = recipe.parents
    sources = {name: open_parent(getattr(parents, name), parents.base) for name in ("long", "short")}
    donor = sources[recipe.merge.donor]
    config = load_config(donor.folder)
    findings = list(check_disk(donor, config, recipe, run_folder))
    if _is_streamed(recipe):
        findings += check_memory(config, stored_bytes(sources.values()), recipe, run_folder)
    return findings


def _is_streamed(recipe: Recipe) -> bool:
    """Whether models will be run layer by layer, for the fit or for a method's statistics."""
    return recipe.merge.method == OURS or method_of(recipe.merge.method, recipe.merge.options)[0].measure is not None


def _check_pair(recipe: Recipe, sources: dict[str, ParentSource], configs: dict[str, Any]) -> list[Finding]:
    """Findings about the donor and each other checkpoint."""
    findings: list[Finding] = []
    donor = recipe.merge.donor
    if donor not in sources:
        return findings
    giver = sources[donor]
    for name in [n for n in sources if n != donor]:
        where = f"{giver.folder} and {sources[name].folder}"
        if donor in configs and name in configs:
            findings += compare_configs(configs[donor], configs[name], where, donor)
        findings += compare_vocabularies(giver, sources[name], where)
        if name != "base":
            findings += compare_generation(giver.folder, sources[name].folder, where, donor)
            findings += compare_templates(giver.folder, sources[name].folder, where, donor)
    other = sources.get("short" if donor == "long" else "long")
    return [
        *findings,
        *check_template(
            giver.folder, other.folder if other else None, recipe.merge.think_prefill, recipe.family.decides
        ),
    ]


def _check_context(recipe: Recipe, configs: dict[str, Any]) -> Iterator[Finding]:
    """Whether answers may be longer than the models were made for."""
    contexts = [int(c.max_position_embeddings) for c in configs.values() if hasattr(c, "max_position_embeddings")]
    for name, asked in (("label", recipe.label), ("eval", recipe.eval)):
        if contexts and asked.max_tokens >= min(contexts):
            message = (
                f"`{name}.max_tokens` {asked.max_tokens}: the models' context is {min(contexts)}, prompt included."
            )
            yield Finding("WARNING", "max-tokens", message, "is asked beyond what it knows", f"{name}.max_tokens")


def _check_exportable(source: ParentSource) -> list[Finding]:
    """What would stop the GGUF export, which comes late, or the sampling of the parents."""
    findings: list[Finding] = []
    attempt(findings, "gguf", partial(check_names, source, source.config, source.folder))
    if EMBEDDING in source.names():
        attempt(findings, "tokenizer", partial(check_tokenizer, source.folder, source.shape(EMBEDDING)[0]))
    return findings


def _check_quantization(types: tuple[str, ...]) -> list[Finding]:
    known = quantization_types()
    message = "`quantize.types`: llama.cpp has no type {!r}; it has {}."
    unknown = [t for t in types if t not in known]
    return [Finding("ERROR", "quantize", message.format(t, some(sorted(known))), key="quantize.types") for t in unknown]


def _check_method(recipe: Recipe) -> list[Finding]:
    """Whether the merge method is known and has what it needs."""
    findings: list[Finding] = []
    merge = recipe.merge
    attempt(findings, "method", partial(choose_device, merge.accelerator, "`merge.accelerator`"))
    if merge.method == OURS:
        if merge.options:
            message = "`merge.options` are for other methods; rpam's settings stand under `fit`."
            findings.append(Finding("ERROR", "method", message, key="merge.options"))
        return findings
    found = attempt(findings, "method", partial(method_of, merge.method, merge.options))
    if found is not None and "base" in found[0].needs and recipe.parents.base is None:
        message = f"`merge.method` {merge.method!r} needs the common base and there is no `parents.base`."
        findings.append(Finding("ERROR", "method", message, "needs the common base", "parents.base"))
    return findings
