"""Write a checkpoint folder: weights as they are computed, config, and the donor's tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from rpam_lite.checkpoint.files import read_json, replace_folder, write_json, write_text
from rpam_lite.checkpoint.layout import weight_index
from rpam_lite.checkpoint.source import INDEX, TensorSource
from rpam_lite.checkpoint.stream import CHUNK_VALUES, JOURNAL, Begin, no_progress, write_weights
from rpam_lite.errors import RpamError

# Copied byte for byte from the donor: re-saving a tokenizer changes it from release to release.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
# In config.json: says that a folder is ours, and what it was made from.
MADE_BY = "rpam_lite"
SHARD_BYTES = 5 * 10**9


def write_checkpoint(
    source: TensorSource,
    config: dict[str, Any],
    donor: Path,
    folder: Path,
    dtype: torch.dtype,
    made_from: dict[str, Any],
    shard_bytes: int = SHARD_BYTES,
    card: str = "",
    begin: Begin = no_progress,
    chunk_values: int = CHUNK_VALUES,
) -> None:
    """Write a Hugging Face checkpoint; after an interruption the same call goes on where it stopped.

    Args:
        source: Tensors, each rounded by the source itself to `dtype`.
        config: Contents of config.json.
        donor: Checkpoint folder whose tokenizer and generation files are copied byte for byte.
        folder: Final name; absent until everything is written, which happens in `folder`.part.
        dtype: float16, bfloat16 or float32.
        made_from: Parents, method, coefficients and so on; recorded in config.json, and a merge that was
            begun from something else is not gone on with.
        shard_bytes: Most bytes of weights a file.
        card: Contents of README.md; none if empty.
        begin: Called with the number of chunks; what it gives is called after each.
        chunk_values: Most values computed at a time.

    Raises:
        RpamError: A value is not finite, the disk is full, or `folder` holds something else.
    """
    if _holds(folder, made_from):
        return
    _refuse_others(folder)
    part = folder.with_name(folder.name + ".part")
    shapes = {name: source.shape(name) for name in source.names()}
    key = json.dumps(made_from, sort_keys=True)
    shards = write_weights(source, part, dtype, shard_bytes, key, begin, chunk_values)
    copy_tokenizer(donor, part)
    write_json(part / "config.json", config | {MADE_BY: made_from})
    if card:
        write_text(part / "README.md", card)
    if len(shards) > 1:
        write_json(part / INDEX, weight_index(shards, shapes, dtype))
    (part / JOURNAL).unlink()
    replace_folder(part, folder)


def copy_tokenizer(donor: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation config, byte for byte, as far as they are there."""
    for name in TOKENIZER_FILES:
        if (donor / name).exists():
            shutil.copyfile(donor / name, folder / name)


def _holds(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether an interrupted call had finished this very merge."""
    config = folder / "config.json"
    return bool(made_from) and config.exists() and read_json(config, "the config").get(MADE_BY) == made_from


def _refuse_others(folder: Path) -> None:
    """An earlier merge may be replaced; anything else is not ours to remove."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    config = folder / "config.json"
    if not config.exists() or MADE_BY not in json.loads(config.read_text(encoding="utf-8")):
        raise RpamError(f"{folder}: is there already and no merge of ours; move it away or choose another folder.")
