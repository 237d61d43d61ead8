"""Model cards as they are published: those of the run, linked as the hub does it, with the commands for the hub."""

from __future__ import annotations

from collections.abc import Mapping

from rpam_lite.report.card import GGUF_PROGRAMS, USE
from rpam_lite.report.commands import Use, as_markdown
from rpam_lite.report.data import Licence
from rpam_lite.report.front_matter import joined, split
from rpam_lite.report.licences import as_front_matter


def published_merge(card: str, use: Use, licence: Licence, report: bool) -> str:
    """The card of the merged folder, for the hub.

    Args:
        card: Text of its README.md, front matter first.
        use: Of the merge on the hub.
        licence: Of the merge, for a card that names none.
        report: Whether the report is published too.
    """
    measured = ["How it was measured: [report](report/report.md)."] if report else []
    return _on_hub(card, {}, licence, *measured, f"{USE} it", as_markdown(use, 3))


def published_gguf(card: str, use: Use, licence: Licence) -> str:
    """The card of the folder of GGUF files, for the hub: a quantization of the merge that is published beside it.

    Args:
        card: Text of its README.md, front matter first.
        use: Of the merge on the hub.
        licence: Of the merge, for a card that names none.
    """
    front = {"base_model": use.checkpoint, "base_model_relation": "quantized"}
    source = f"GGUF files of [{use.checkpoint}](https://huggingface.co/{use.checkpoint})."
    return _on_hub(card, front, licence, f"{USE} it", source, as_markdown(use, 3, GGUF_PROGRAMS))


def _on_hub(card: str, front: Mapping[str, object], licence: Licence, *ending: str) -> str:
    """A card with this in its front matter, and this ending in place of its last section, which is for the run."""
    told, body = split(card)
    named = {} if "license" in told else as_front_matter(licence)
    body = body.partition(f"\n{USE}\n")[0].rstrip()
    return joined({**told, **named, **front}, "\n\n".join([body, *ending]))
