"""Model cards: README.md of the merged folder and of the folder of GGUF files, with the front matter the hub reads.

The merge stage writes the first one with what is known then; the report stage writes both with all figures, and
`rpam publish` sends both as published.py completes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rpam_lite.checkpoint.files import size_text
from rpam_lite.report.commands import as_markdown
from rpam_lite.report.data import Origin, Report
from rpam_lite.report.front_matter import joined
from rpam_lite.report.licences import as_front_matter, merged_licence, what_follows
from rpam_lite.report.markdown import closing_table, percent, quantization_section, verdict

USE = "## Use"  # heading of the last section, which `rpam publish` replaces with the commands for the hub
GGUF_PROGRAMS = ("llama.cpp", "Ollama")
_ARXIV = "2601.03506"


def card(origin: Origin, report: Report | None = None) -> str:
    """The model card of the merged checkpoint.

    Args:
        origin: What it was made from.
        report: What was measured; None before anything is.
    """
    sections = [
        f"# {origin.name}\n\n{_summary(origin)}",
        "" if report is None else _measured(report),
        _made_from(origin),
        "" if report is None else _proven(report),
        _licence(origin),
        _method(origin),
        "" if report is None else _usage(report, ("transformers", "vLLM")),
    ]
    return _card(origin, ["merge", "reasoning", "rpam_lite"], "transformers", sections)


def gguf_card(report: Report) -> str:
    """The model card of the folder of GGUF files: of the quantized ones, or of the unquantized one if it is alone."""
    origin, whole = report.origin, report.files[0]
    imatrix = (
        "weighed by an importance matrix of the merge's own inputs" if report.imatrix else "without importance matrix"
    )
    made = (
        f"Quantized for llama.cpp, {imatrix}."
        if len(report.files) > 1
        else f"For llama.cpp, unquantized: {whole.type}, {size_text(whole.size)}."
    )
    sections = [
        f"# {origin.name}, GGUF\n\n{_summary(origin)} {made}",
        _measured(report),
        _made_from(origin),
        _licence(origin),
        _method(origin),
        _usage(report, GGUF_PROGRAMS),
    ]
    return _card(origin, ["gguf", "llama.cpp", "merge", "reasoning", "rpam_lite"], "gguf", sections)


def _card(origin: Origin, tags: list[str], library: str, sections: Sequence[str]) -> str:
    """Front matter and sections. It leaves parents out that are no ids of the hub, which would link what it names."""
    told: dict[str, object] = {**as_front_matter(merged_licence(origin.parents))}
    both = [p for p in origin.parents if p.role != "base"]
    if named := [p.name for p in both if p.is_on_hub]:
        told |= {"base_model": named, "base_model_relation": "merge"}
    told |= {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    unnamed = " and ".join(p.name for p in both if not p.is_on_hub)
    lacking = f"base_model lacks {unnamed}: name the hub's ids of these folders." if unnamed else ""
    return joined(told, "\n\n".join(section.strip() for section in sections if section), lacking)


def _summary(origin: Origin) -> str:
    long, short = origin.parents[0].name, origin.parents[1].name
    return (
        f"A merge of {long} (Long-CoT) and {short} (Short-CoT), made by rpam_lite {origin.version}: it is to think "
        "long only where that helps. No weights were trained."
    )


def _measured(report: Report) -> str:
    """Headline, rows of parents and merge with the best scalar beside them, and the quantized files."""
    head, long = report.headline, report.long
    kept = (
        f"**{percent(head.kept.value)} of Long's accuracy** (95 % interval {100 * head.kept.low:.1f} to "
        f"{100 * head.kept.high:.1f}), "
        if head.kept.value == head.kept.value
        else ""
    )
    sentence = (
        f"{head.row['name']} ({size_text(head.size)}): {kept}**{percent(head.saved.value)} of its tokens saved** "
        f"({100 * head.saved.low:.1f} to {100 * head.saved.high:.1f}), on {report.questions} held-out questions, "
        f"greedy, in llama.cpp: {percent(head.row['accuracy'])} at {head.row['tokens']:.1f} tokens against "
        f"{percent(long['accuracy'])} at {long['tokens']:.1f}."
    )
    rows = [report.short, long, *report.nearest_scalars, *(file.row for file in report.files)]
    gain = verdict(head.row)
    return f"""## What was measured

{sentence}

{closing_table(rows)}

{f"Against plain interpolation with one number, at equal tokens: {gain}" if gain else ""}
{quantization_section(report.files) if len(report.files) > 1 else ""}"""


def _usage(report: Report, programs: tuple[str, ...]) -> str:
    """How these programs run it."""
    if report.use is None:
        return ""
    return f"{USE}\n\n{as_markdown(report.use, 3, programs)}"


def _made_from(origin: Origin) -> str:
    rows = "\n".join(
        f"| {p.role.capitalize()} parent | {p.name} (`{p.sha256[:16]}`) |"
        if p.role != "base"
        else f"| base | {p.name} (`{p.sha256[:16]}`) |"
        for p in origin.parents
    )
    differences = "\n".join(f"- `{code}`: {told}" for code, told in origin.differences) or "None."
    return f"""## What it was made from

| | |
|---|---|
{rows}
| method | {origin.method} |
| config, tokenizer, chat template, generation config | {origin.donor} |
| type of the weights | {origin.dtype}, computed in float32, rounded once |

Where the parents differ:

{differences}"""


def _proven(report: Report) -> str:
    return "## Proven\n\n" + "\n".join(f"- {sentence}" for sentence in report.proofs) if report.proofs else ""


def _licence(origin: Origin) -> str:
    return "## Licence\n\n" + "\n".join(f"- {sentence}" for sentence in what_follows(origin.parents))


def _method(origin: Origin) -> str:
    if not origin.is_fitted:
        return ""
    return f"""## Method

Reasoning Pattern Alignment Merging ([arXiv {_ARXIV}](https://arxiv.org/abs/{_ARXIV})), with lambda weighting the Long
parent: W = S + lambda * (L - S)."""
