"""Findings about tokenizers, generation configs and chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.aligned import EMBEDDING
from rpam_lite.checkpoint.files import read_json
from rpam_lite.checkpoint.pair import row_map
from rpam_lite.checkpoint.prefill import without_prefill
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.checkpoint.vocabulary import chat_template, differing_tokens, opens_think_block, tokens_by_id
from rpam_lite.errors import some
from rpam_lite.preflight.findings import Finding, attempt

# Below this share of common tokens two vocabularies are strangers.
_ENOUGH = 0.5


def compare_vocabularies(donor: ParentSource, other: ParentSource, where: str) -> Iterator[Finding]:
    """Which rows will be merged, moved, kept from the donor, or dropped."""
    findings: list[Finding] = []
    tokens = [attempt(findings, "tokenizer", partial(tokens_by_id, s.folder)) for s in (donor, other)]
    yield from dict.fromkeys(findings)
    if tokens[0] is None or tokens[1] is None or EMBEDDING not in donor.names() or EMBEDDING not in other.names():
        return
    differing = differing_tokens(tokens[0], tokens[1])
    rows = [s.shape(EMBEDDING)[0] for s in (donor, other)]
    if not differing and rows[0] == rows[1]:
        return
    matched = row_map(other, donor)
    if len(matched.lone) > (1 - _ENOUGH) * len(tokens[0]):
        message = f"{where}: {len(matched.lone)} of {len(tokens[0])} tokens are unknown to the second; not one family."
        yield Finding("ERROR", "vocabulary", message)
        return
    example = f" (id {differing[0]} is {tokens[0].get(differing[0])!r} and {tokens[1].get(differing[0])!r})"
    message = f"{where}: {len(differing)} token ids differ{example if differing else ''}; {rows[0]} and {rows[1]} rows."
    effect = (
        f"goes by token strings: {matched.moved} rows are found under another id, {len(matched.lone)} tokens of the "
        f"donor alone keep its row, {matched.dropped} tokens of the second alone are dropped"
    )
    yield Finding("WARNING", "vocabulary", message, effect, "merge.donor")


def compare_generation(donor: Path, other: Path, where: str, donor_name: str) -> Iterator[Finding]:
    """Differences of generation_config.json."""
    findings: list[Finding] = []
    settings = [attempt(findings, "generation-config", partial(_generation, folder)) for folder in (donor, other)]
    yield from findings
    if settings[0] is None or settings[1] is None:
        return
    keys = settings[0].keys() | settings[1].keys()
    differing = sorted(k for k in keys if settings[0].get(k) != settings[1].get(k))
    if differing:
        told = [f"`{k}` is {settings[0].get(k)!r} and {settings[1].get(k)!r}" for k in differing]
        message = f"{where}: generation_config.json differs: {some(told)}."
        yield Finding("WARNING", "generation-config", message, f"keeps that of {donor_name}", "merge.donor")


def check_template(
    donor: Path, other: Path | None = None, prefill: str = "keep", decides: bool = False
) -> Iterator[Finding]:
    """Whether the merge can be asked anything, and how its answers begin.

    Args:
        donor: Whose template is kept.
        other: The other parent.
        prefill: `merge.think_prefill`.
        decides: Whether a decision row is to choose an answer's first token.
    """
    findings: list[Finding] = []
    template = attempt(findings, "tokenizer", partial(chat_template, donor))
    if template is None and not findings:
        message = f"{donor}: has no chat template, so the merge could not be asked anything."
        yield Finding("ERROR", "template", message, "needs one; add it, or name the other parent", "merge.donor")
    if template is not None and attempt(findings, "template", partial(opens_think_block, template, donor)):
        message = f"{donor}: its chat template opens a think block in the prompt."
        if prefill == "drop":
            effect = "is asked without that, and opens a block itself where it thinks"
            if attempt(findings, "template", partial(without_prefill, template, donor)) is not None:
                yield Finding("INFO", "think-prefill", message, effect, "merge.think_prefill")
        elif decides:
            effect = "starts every answer inside it, and a row has nothing to choose; `drop` leaves it to the model"
            yield Finding("ERROR", "think-prefill", message, effect, "merge.think_prefill")
        elif other is None or _opens(other):
            effect = "starts every answer inside that block; a short answer is one that closes it at once"
            yield Finding("INFO", "think-prefill", message, effect, "merge.think_prefill")
        else:
            message += f" {other} is used to no such block and may never close it: all its answers would be wrong."
            effect = "starts every answer inside that block; `drop` leaves the block to the model"
            yield Finding("WARNING", "think-prefill", message, effect, "merge.think_prefill")
    yield from findings


def _opens(folder: Path) -> bool:
    """Whether a parent's own template opens the block, as far as it can be told."""
    template = attempt([], "tokenizer", partial(chat_template, folder))
    return template is not None and bool(attempt([], "template", partial(opens_think_block, template, folder)))


def compare_templates(donor: Path, other: Path, where: str, donor_name: str) -> Iterator[Finding]:
    """Whether both parents are asked in the same form."""
    findings: list[Finding] = []
    templates = [attempt(findings, "tokenizer", partial(chat_template, folder)) for folder in (donor, other)]
    yield from findings
    if not findings and templates[0] != templates[1]:
        message = f"{where}: the chat templates differ."
        yield Finding("WARNING", "template", message, f"keeps that of {donor_name}, for sampling too", "merge.donor")


def _generation(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    settings = read_json(file, "the generation config") if file.exists() else {}
    return {k: v for k, v in settings.items() if not k.startswith("_") and k != "transformers_version"}
