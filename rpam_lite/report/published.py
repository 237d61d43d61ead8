"""Model cards as they are published: that of the merge, and that of the repository of its GGUF files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rpam_lite.checkpoint.files import size_text
from rpam_lite.report.card import USE
from rpam_lite.report.commands import Use, as_markdown
from rpam_lite.report.data import Licence
from rpam_lite.report.licences import as_front_matter

_PROGRAMS = ("llama.cpp", "Ollama")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def merge_card(card: str, use: Use, licence: Licence, report: bool) -> str:
    """The card of the merged folder, for the hub.

    Args:
        card: Text of its README.md, front matter first.
        use: Of the merge on the hub.
        licence: Of the merge.
        report: Whether the report is published too.
    """
    front, body = _parts(card)
    body = body.partition(f"\n{USE}\n")[0]  # that of the run folder: its last section
    named = front.get("base_model", [])
    # The hub refuses or ignores what is no id of its own.
    parents = [name for name in ([named] if isinstance(named, str) else named) if _HUB_ID.fullmatch(name)]
    front = {name: value for name, value in front.items() if name not in ("base_model", "base_model_relation")}
    if parents:
        front |= {"base_model": parents, "base_model_relation": "merge"}
    if "license" not in front:
        front |= as_front_matter(licence)
    front.setdefault("pipeline_tag", "text-generation")
    shown = "\nHow it was measured: [report](report/report.md).\n" if report else ""
    return _card(front, f"{body.rstrip()}\n{shown}\n## Use it\n\n{as_markdown(use, 3)}")


def measured_gguf_card(card: str, use: Use, licence: Licence) -> str:
    """The card of the folder of GGUF files, which tells what was measured, for the hub.

    Args:
        card: Text of its README.md, front matter first.
        use: Of the merge on the hub.
        licence: Of the merge.
    """
    front, body = _parts(card)
    body = body.partition(f"\n{USE}\n")[0]
    if "license" not in front:
        front |= as_front_matter(licence)
    front |= {"base_model": use.checkpoint, "base_model_relation": "quantized", "library_name": "gguf"}
    source = f"GGUF files of [{use.checkpoint}](https://huggingface.co/{use.checkpoint})."
    return _card(front, f"{body.rstrip()}\n\n## Use it\n\n{source}\n\n{as_markdown(use, 3, _PROGRAMS)}")


def gguf_card(use: Use, sizes: Mapping[str, int], losses: Mapping[str, float], licence: Licence) -> str:
    """The card of the repository of GGUF files, where the report stage wrote none.

    Args:
        use: Of the merge on the hub.
        sizes: Bytes of each file by name.
        losses: Mean KL divergence of each file from the unquantized one, in nats a token, where it was measured.
        licence: As of the merge.
    """
    front: dict[str, Any] = {"base_model": use.checkpoint, "base_model_relation": "quantized", "library_name": "gguf"}
    front |= as_front_matter(licence)
    front |= {"pipeline_tag": "text-generation", "tags": ["gguf", "merge", "rpam_lite"]}
    rows = [
        f"| `{name}` | {size_text(size)} | {f'{losses[name]:.2g}' if name in losses else '-'} |"
        for name, size in sizes.items()
    ]
    table = "\n".join(["| file | size | mean KL divergence, nats a token |", "|---|---:|---:|", *rows])
    head = f"# {use.name}, quantized\n\nGGUF files of [{use.checkpoint}](https://huggingface.co/{use.checkpoint}).\n\n"
    return _card(front, f"{head}{table}\n\n{as_markdown(use, 2, _PROGRAMS)}")


def _parts(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.S)
    front = yaml.safe_load(match[1]) if match else {}
    return (front if isinstance(front, dict) else {}), card[match.end() :] if match else card


def _card(front: Mapping[str, Any], body: str) -> str:
    told = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{told}---\n{body if body.startswith(chr(10)) else chr(10) + body}"
