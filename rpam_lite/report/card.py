"""README.md of the merged folder: what it was made from, what differed, how it was proven."""

from __future__ import annotations

from typing import Any

from rpam_lite.recipe import Recipe


def card(recipe: Recipe, origin: dict[str, Any], findings: list[dict[str, Any]]) -> str:
    """The model card, with the front matter that the hub reads.

    Args:
        recipe: The recipe.
        origin: What config.json records of the merge's origin.
        findings: Preflight's, of which the warnings are listed.
    """
    parents = {name: origin[name]["name"] for name in ("long", "short")}
    front = "\n".join(["base_model:", *(f"- {name}" for name in parents.values()), "tags:", "- merge", "- rpam_lite"])
    warnings = [f for f in findings if f["level"] == "WARNING"]
    differences = "\n".join(f"- `{f['code']}`: {_without_paths(f, recipe)}" for f in warnings) or "None."
    return f"""---
{front}
library_name: transformers
---

# {recipe.name}

A merge of a Long-CoT and a Short-CoT model, made by rpam_lite {origin["version"]}; no weights were trained.

| | |
|---|---|
| Long parent | {parents["long"]} (`{origin["long"]["sha256"][:16]}`) |
| Short parent | {parents["short"]} (`{origin["short"]["sha256"][:16]}`) |
| method | {origin["method"]} |
| config, tokenizer, chat template, generation config | {origin["donor"]} |
| type of the weights | {origin["dtype"]}, computed in float32, rounded once |

Both parents' licences apply to it.

## Where the parents differ

{differences}
"""


def _without_paths(finding: dict[str, Any], recipe: Recipe) -> str:
    """A finding with the parents' names in the place of this machine's folders."""
    text = f"{finding['message']} The merge: {finding['effect']}."
    for name in ("long", "short", "base"):
        folder = getattr(recipe.parents, name)
        text = text.replace(str(folder), name) if folder is not None else text
    return text
