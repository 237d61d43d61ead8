"""Write a GGUF file as a stream: all headers first, then the tensors, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from export.gguf.architecture import (
    add_decoder,
    architecture_of,
    gguf_names,
    head_size,
    rope_of,
    rotary_heads,
)
from export.gguf.tokenizer import add_tokenizer
from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD
from rpam_lite.checkpoint.files import whole_file
from rpam_lite.checkpoint.ranges import byte_view
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError

GgufType = Literal["F32", "F16", "BF16", "Q8_0"]
_FILE_TYPES = {
    "F32": (gguf.LlamaFileType.ALL_F32, Kind.F32),
    "F16": (gguf.LlamaFileType.MOSTLY_F16, Kind.F16),
    "BF16": (gguf.LlamaFileType.MOSTLY_BF16, Kind.BF16),
    "Q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, Kind.Q8_0),
}
_TORCH = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
_CHUNK_VALUES = 4 << 20
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    Attributes:
        name: Its name in GGUF.
        origin: Its name in the checkpoint.
        shape: Rows first.
        kind: Its type in the file.
        chunks: Gives its rows in order, a chunk at a time.
    """

    name: str
    origin: str
    shape: tuple[int, ...]
    kind: Kind
    chunks: Callable[[], Iterator[torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return (
            prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind))
            if self.kind == Kind.Q8_0
            else (prod(self.shape) * _TORCH[self.kind].itemsize)
        )


def write_gguf(
    source: TensorSource,
    config: dict[str, Any],
    tokenizer_folder: Path,
    path: Path,
    file_type: GgufType,
    name: str,
    on_tensor: Callable[[str], None] = lambda name: None,
    parents: Sequence[str] = (),
) -> None:
    """Write `source` as a GGUF file that llama.cpp and Ollama load.

    Args:
        source: The tensors, by their Hugging Face names; a merge may compute them on the way.
        config: Contents of the checkpoint's config.json.
        tokenizer_folder: Folder with tokenizer.json, tokenizer_config.json, generation_config.json.
        path: Final name; absent until the file is whole.
        file_type: Type of the matrices; norms and biases stay F32, as in llama.cpp's converter.
        name: `general.name`.
        on_tensor: Called with each name after it is written.
        parents: Names of what it was merged from, for `general.base_model`.

    Raises:
        RpamError: Unknown architecture, tokenizer or tensor name, or a value that is not finite.
    """
    architecture = architecture_of(config, tokenizer_folder)
    tensors = entries(source, config, tokenizer_folder, file_type)
    with whole_file(path) as part:
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[architecture.arch])
        for entry in tensors:
            as_stored = np.dtype(np.float32 if entry.kind == Kind.F32 else np.float16)
            writer.add_tensor_info(entry.name, entry.shape, as_stored, entry.size, raw_dtype=entry.kind)
        _add_general(writer, name, parents, tokenizer_folder)
        add_decoder(writer, architecture, config, tokenizer_folder)
        writer.add_file_type(_FILE_TYPES[file_type][0])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer_folder, source.shape(EMBEDDING)[0], architecture.vocabulary_keys)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        for entry in tensors:
            for rows in entry.chunks():
                out.write(encode(rows, entry))
            writer.write_padding(out, entry.size)
            on_tensor(entry.name)
        writer.close()


def _add_general(writer: gguf.GGUFWriter, name: str, parents: Sequence[str], folder: Path) -> None:
    """Name, size, parents, and the sampling that generation_config.json recommends."""
    generation = gguf.Metadata.load_generation_config(folder) or {}
    metadata = gguf.Metadata(
        name=name,
        size_label=gguf.size_label(*writer.get_total_parameter_count()),
        base_models=[{"name": parent} for parent in parents] or None,
        sampling_temp=generation.get("temperature"),
        sampling_top_k=generation.get("top_k"),
        sampling_top_p=generation.get("top_p"),
        sampling_min_p=generation.get("min_p"),
        sampling_penalty_repeat=generation.get("penalty_repeat"),
    )
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)


def entries(source: TensorSource, config: dict[str, Any], folder: Path, file_type: GgufType) -> list[Entry]:
    """Every tensor of the file that `write_gguf` writes, in its order there.

    Raises:
        RpamError: As `write_gguf`.
    """
    architecture = architecture_of(config, folder)
    names = [n for n in source.names() if not (n == HEAD and config.get("tie_word_embeddings"))]
    name_of = gguf_names(names, config, folder)
    found = []
    factors = rope_of(architecture, config, folder).frequency_factors(head_size(config))
    if factors is not None:
        found.append(Entry(ROPE_FACTORS, ROPE_FACTORS, tuple(factors.shape), Kind.F32, lambda: iter([factors])))
    for n in names:
        shape = source.shape(n)
        heads = rotary_heads(architecture, n, config)
        kind = _kind(n, shape, file_type)
        found.append(Entry(name_of[n], n, shape, kind, partial(_rows, source, n, heads)))
    return found


def _rows(source: TensorSource, name: str, heads: int | None) -> Iterator[torch.Tensor]:
    """A tensor's rows in order, a chunk at a time; those of `heads` rotary heads in llama.cpp's order."""
    shape = source.shape(name)
    if heads is not None:
        yield leave_rotary_layout(source.rows(name, 0, shape[0]), heads)
        return
    step = max(1, _CHUNK_VALUES // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield source.rows(name, start, min(start + step, shape[0]))


def leave_rotary_layout(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k, of Hugging Face's two halves a head, as llama.cpp's neighbouring pairs."""
    return rows.view(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def encode(rows: torch.Tensor, entry: Entry) -> memoryview | bytes:
    """Some rows in the entry's type.

    Raises:
        RpamError: A value is not finite, there or in the checkpoint; llama.cpp would load it without complaint.
    """
    if not _finite(rows):
        raise RpamError(f"{entry.origin}: holds inf or NaN in the checkpoint; check the parents.")
    if entry.kind == Kind.Q8_0:
        quantized: bytes = gguf.quants.quantize(rows.float().numpy(), Kind.Q8_0).tobytes()
        return quantized
    encoded = rows.to(_TORCH[entry.kind]).contiguous()
    if entry.kind == Kind.F16 and rows.dtype != torch.float16 and not _finite(encoded):
        raise RpamError(f"{entry.origin}: holds inf or NaN as F16; export as BF16 (`export: {{type: BF16}}`).")
    return byte_view(encoded)


def _finite(rows: torch.Tensor) -> bool:
    # NaN and inf show in the extremes, in a tenth of the time that isfinite takes.
    return rows.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(rows))


def _kind(name: str, shape: tuple[int, ...], file_type: GgufType) -> Kind:
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return Kind.F32
    kind = _FILE_TYPES[file_type][1]
    # As llama.cpp's converter does with rows that don't divide into blocks.
    return Kind.F16 if kind == Kind.Q8_0 and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind
