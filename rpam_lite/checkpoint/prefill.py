"""The donor's small files with a chat template that leaves it to the model whether to think.

The templates of R1-Distill and Qwen3-Thinking end every prompt in an open `<think>`. A Short parent that is
asked so never closes a block that it did not open: all its answers count as cut off, and no question can be
labelled `short`. Without those last characters the prompt is the same for both ways of answering.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

from rpam_lite.checkpoint.files import read_json, whole_folder, write_json, write_text
from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.checkpoint.think import THINK_OPEN
from rpam_lite.checkpoint.vocabulary import chat_template, opens_think_block
from rpam_lite.checkpoint.write import copy_tokenizer
from rpam_lite.errors import RpamError

# At the end of a string of the template; a line break is written as one, or as \n.
_PREFILL = re.compile(THINK_OPEN + r"(?:\\n|\n)*(?=['\"])")


class WithFolder:
    """A parent whose config and tokenizer are read from another folder."""

    def __init__(self, source: ParentSource, folder: Path) -> None:
        self._source, self.folder = source, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def without_prefill(template: str, folder: Path) -> str:
    """The template without the think block that it opens in the prompt; as it is where it opens none.

    Raises:
        RpamError: The place can't be found.
    """
    if not opens_think_block(template, folder):
        return template
    if found := list(_PREFILL.finditer(template)):
        # The last one: those before it stand in the turns of the past.
        start, end = found[-1].span()
        shorter = template[:start] + template[end:]
        if not opens_think_block(shorter, folder):
            return shorter
    raise RpamError(
        f"{folder}: its chat template opens a think block in a way that can't be taken out; "
        "edit the template by hand, or set `merge.think_prefill: keep`."
    )


def with_neutral_template(donor: ParentSource, folder: Path) -> ParentSource:
    """The donor with copies of its config and tokenizer files, and a template that opens no think block.

    Args:
        donor: The donor.
        folder: Where the copies go; what is there is taken as it is, so its name must tell the donor.

    Raises:
        RpamError: As `without_prefill`.
    """
    template = chat_template(donor.folder)
    if template is None:
        return donor
    neutral = without_prefill(template, donor.folder)
    if neutral == template:
        return donor
    if not folder.exists():
        with whole_folder(folder) as part:
            copy_tokenizer(donor.folder, part)
            shutil.copyfile(donor.folder / "config.json", part / "config.json")
            if (part / "chat_template.jinja").exists():
                write_text(part / "chat_template.jinja", neutral)
            else:
                config = read_json(part / "tokenizer_config.json", "the tokenizer's config")
                write_json(part / "tokenizer_config.json", config | {"chat_template": neutral})
    return cast(ParentSource, WithFolder(donor, folder))
