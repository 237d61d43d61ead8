"""Write a GGUF file as a stream: all headers first, then one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch

from export.gguf.architectures import architecture_of, gguf_names
from export.gguf.tokenizer import add_tokenizer
from rpam_lite.checkpoint.files import whole_file
from rpam_lite.checkpoint.source import TensorSource
from rpam_lite.errors import RpamError

GgufType = Literal["F32", "F16", "BF16"]
_FILE_TYPES = {
    "F32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "F16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "BF16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def write_gguf(
    source: TensorSource,
    config: dict[str, Any],
    tokenizer_folder: Path,
    path: Path,
    file_type: GgufType,
    name: str,
    on_tensor: Callable[[str], None] = lambda name: None,
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

    Raises:
        RpamError: Unknown architecture, tokenizer or tensor name, or a value that is not finite.
    """
    architecture = architecture_of(config, tokenizer_folder)
    names = [n for n in source.names() if not (n == HEAD and config.get("tie_word_embeddings"))]
    name_of = gguf_names(names, config, tokenizer_folder)
    types = {n: _tensor_type(n, source.shape(n), file_type) for n in names}
    with whole_file(path) as part:
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[architecture.arch])
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        architecture.add_metadata(writer, config, tokenizer_folder)
        writer.add_file_type(_FILE_TYPES[file_type][0])
        add_tokenizer(writer, tokenizer_folder, rows=source.shape(EMBEDDING)[0])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for n in names:
            shape, kind = source.shape(n), types[n]
            size = gguf.quant_shape_to_byte_shape(shape, kind)
            as_stored = np.dtype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
            writer.add_tensor_info(name_of[n], shape, as_stored, int(np.prod(size)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for n in names:
            writer.write_tensor_data(encode(source.get(n), types[n], n))
            on_tensor(n)
        writer.close()


def encode(tensor: torch.Tensor, kind: gguf.GGMLQuantizationType, name: str) -> np.ndarray:
    """The tensor's bytes in GGUF type `kind`.

    Raises:
        RpamError: A value is not finite in that type; llama.cpp would load it without complaint.
    """
    values = tensor.float().numpy()
    encoded: np.ndarray = gguf.quants.quantize(values, kind)
    finite = np.isfinite(encoded).all() if kind != gguf.GGMLQuantizationType.BF16 else np.isfinite(values).all()
    if not finite:
        raise RpamError(f"{name}: holds inf or NaN as {kind.name}; export as BF16, or check the parents.")
    return encoded


def _tensor_type(name: str, shape: tuple[int, ...], file_type: GgufType) -> gguf.GGMLQuantizationType:
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return gguf.GGMLQuantizationType.F32
    return _FILE_TYPES[file_type][1]
