"""Where tensors come from: a checkpoint folder, or anything that computes tensors by name.

The merge and the GGUF export take any `TensorSource`, so that a merge can be written as a Hugging
Face folder or straight as a GGUF file, one tensor in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rpam_lite.checkpoint.files import read_json
from rpam_lite.checkpoint.ranges import Extent, read_bytes, read_header, read_rows, read_tensor
from rpam_lite.errors import RpamError

INDEX = "model.safetensors.index.json"


class TensorSource(Protocol):
    """Named tensors, each computed or read when asked for."""

    def names(self) -> Sequence[str]:
        """Tensor names, in the order in which they are best read."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, known without reading it."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in the source's dtype."""
        ...

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one tensor."""
        ...


class ParentSource(TensorSource, Protocol):
    """A parent: a source with a config and a folder, whose tensors can be read in pieces."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config."""
        ...

    @property
    def folder(self) -> Path:
        """Where config and tokenizer lie."""
        ...

    @property
    def as_stored(self) -> bool:
        """Whether tensors are read as they lie on the disk, not computed."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor, known without reading it."""
        ...

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Read one tensor into `out`, of its shape and type, contiguous, on the CPU."""
        ...


class CheckpointSource:
    """A Hugging Face folder: config.json and one or more safetensors files.

    Raises:
        RpamError: The folder, its config, its index or a shard is missing, truncated or no safetensors.
    """

    as_stored = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            what = "is a file; name the folder that it lies in" if folder.is_file() else "no such checkpoint folder"
            raise RpamError(f"{folder}: {what}; check the path under `parents` in the recipe.")
        self.config: dict[str, Any] = read_json(folder / "config.json", "the checkpoint's config")
        self._extent_of: dict[str, Extent] = {}
        named = self._read_index()
        for file in self._weight_files(named):
            extents = read_header(file)
            if twice := sorted(extents.keys() & self._extent_of.keys()):
                raise RpamError(f"{file}: holds {twice[0]}, which another file of the folder holds too; remove one.")
            self._extent_of |= extents
        self._refuse_another_index(named)

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._extent_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        return self._extent_of[name].shape

    def get(self, name: str) -> torch.Tensor:
        """One tensor as stored."""
        return read_tensor(self._extent_of[name])

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor, from the header."""
        return self._extent_of[name].dtype

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of one tensor as stored."""
        return read_rows(self._extent_of[name], start, stop)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Read one tensor's bytes into `out`, contiguous, of its shape and type, on the CPU."""
        extent = self._extent_of[name]
        read_bytes(extent.file, extent.offset, out.view(-1).view(torch.uint8))

    def _read_index(self) -> dict[str, str]:
        """File by tensor name; empty without an index."""
        index = self.folder / INDEX
        if not index.exists():
            return {}
        named = read_json(index, "the shard index").get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(s, str) for s in named.values()):
            raise RpamError(f"{index}: has no `weight_map`; download the checkpoint again.")
        if outside := next((s for s in named.values() if Path(s).name != s), None):
            raise RpamError(f"{index}: names {outside!r}, which is no file of this folder; download it again.")
        return named

    def _weight_files(self, named: dict[str, str]) -> list[Path]:
        if named:
            return [self.folder / shard for shard in sorted(set(named.values()))]
        single = self.folder / "model.safetensors"
        if single.exists():
            return [single]
        if list(self.folder.glob("*.bin")):
            raise RpamError(
                f"{self.folder}: holds pickle weights (.bin) only, which can run code when read; "
                "convert them with transformers: save_pretrained(..., safe_serialization=True)."
            )
        raise RpamError(f"{self.folder}: has neither model.safetensors nor {INDEX}; download it whole.")

    def _refuse_another_index(self, named: dict[str, str]) -> None:
        """The index and the shards must tell the same of every tensor."""
        for name in sorted(named.keys() | self._extent_of.keys()) if named else ():
            found = self._extent_of[name].file.name if name in self._extent_of else "no file"
            if named.get(name) != found:
                raise RpamError(
                    f"{self.folder / INDEX}: puts {name} into {named.get(name, 'no file')}, and {found} holds it; "
                    "download the index and the shards again."
                )
