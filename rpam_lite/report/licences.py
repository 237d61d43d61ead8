"""The parents' licences, as their own files tell, and what follows for the merge. No legal advice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpam_lite.report.data import Licence, Parent
from rpam_lite.report.front_matter import split

UNKNOWN = "unknown"
# How a licence's text begins, by the hub's identifier.
_BEGINNINGS = {
    "apache-2.0": r"Apache License\s+Version 2\.0",
    "mit": r"MIT License|Permission is hereby granted, free of charge",
    "llama3.3": r"LLAMA 3\.3 COMMUNITY",
    "llama3.2": r"LLAMA 3\.2 COMMUNITY",
    "llama3.1": r"LLAMA 3\.1 COMMUNITY",
    "llama3": r"META LLAMA 3 COMMUNITY",
    "gemma": r"Gemma Terms of Use",
}
# These ask for little more than that their notices go along.
_PERMISSIVE = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc-by-4.0"}


def read_licence(folder: Path) -> Licence:
    """The licence of a checkpoint: of its README's front matter, else of its LICENSE file, else unknown."""
    told = _front_matter(folder / "README.md")
    if isinstance(named := told.get("license"), str):
        name, link = (str(told.get(f"license_{key}") or "") for key in ("name", "link"))
        return Licence(named.lower(), name, link, "README.md")
    for file in sorted(folder.glob("LICEN[SC]E*")):
        text = file.read_text(encoding="utf-8", errors="replace")[:2000]
        for known, beginning in _BEGINNINGS.items():
            if re.search(beginning, text, re.IGNORECASE):
                return Licence(known, found=file.name)
        title = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return Licence("other", title[:80], found=file.name)
    return Licence(UNKNOWN)


def _front_matter(readme: Path) -> dict[str, Any]:
    """That of a README; empty where there is none that can be read."""
    try:
        return split(readme.read_text(encoding="utf-8"))[0]
    except (OSError, UnicodeError):
        return {}


def merged_licence(parents: Sequence[Parent]) -> Licence:
    """What the merge's front matter says: the parents' licence if they agree, `other` if not, unknown if one is."""
    found = [p.licence for p in _both(parents)]
    if any(_is_unknown(licence) for licence in found):
        return Licence(UNKNOWN)
    if len({licence.title for licence in found}) == 1:
        links = {licence.link for licence in found}
        return replace(found[0], link=found[0].link if len(links) == 1 else "")
    names = dict.fromkeys(re.sub(r"[^a-z0-9.]+", "-", licence.title.lower()) for licence in found)
    return Licence("other", "-and-".join(names))


def _is_unknown(licence: Licence) -> bool:
    """Also `other` without a name: two of them may be two licences."""
    return licence.id == UNKNOWN or (licence.id == "other" and not licence.name)


def as_front_matter(licence: Licence) -> dict[str, str]:
    """How a card's front matter tells it; an unknown one is left out: whoever passes the merge on has to settle it."""
    told = {} if licence.id == UNKNOWN else {"license": licence.id}
    if licence.id == "other":
        told["license_name"] = licence.name or "see-below"
    if licence.link:
        told["license_link"] = licence.link
    return told


def what_follows(parents: Sequence[Parent]) -> list[str]:
    """Sentences on what the parents' licences mean for whoever uses the merge or passes it on."""
    both = _both(parents)
    told = [f"{p.role.capitalize()}'s is {p.licence.title} ({p.licence.found})" for p in both if p.licence.found]
    unknown = [p.role.capitalize() for p in both if _is_unknown(p.licence)]
    sentences = [f"{'; '.join(told)}."] if told else []
    if unknown:
        sentences.append(
            f"{' and '.join(unknown)}: unknown, no licence was found among the checkpoint's files; ask whoever made it "
            "before you pass the merge on."
        )
    known = {p.licence.title for p in both} - {UNKNOWN}
    ids = {p.licence.id for p in both}
    if len(known) > 1:
        sentences.append(
            "They differ, and the merge derives from both: what either demands must be met, and what either forbids "
            "is forbidden."
        )
    elif not unknown:
        sentences.append("Both parents are under the same licence, and so is the merge.")
    if ids <= _PERMISSIVE:
        sentences.append("Keep the copyright notices of both when you pass it on.")
    if any(i.startswith(("llama3", "llama4")) for i in ids):
        sentences.append(
            "The Llama licence asks that the name of a derived model begins with “Llama” and that “Built with Llama” "
            "is shown."
        )
    if any(re.search(r"(^|-)nc(-|$)|non-?commercial", i) for i in {*ids, *(n.lower() for n in known)}):
        sentences.append("One of them allows no commercial use, so the merge allows none.")
    return sentences


def _both(parents: Sequence[Parent]) -> list[Parent]:
    return [p for p in parents if p.role in ("long", "short")]
