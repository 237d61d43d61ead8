"""The importance matrix: mean squared inputs of every matrix of the decoder layers, in llama.cpp's own file form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from quant.header import read_header
from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError

_SUM, _COUNT = ".in_sum2", ".counts"
CHUNK = 512


@dataclass(frozen=True)
class Inputs:
    """What one matrix was fed.

    Attributes:
        squares: Sum of the squared inputs over all tokens, float32 [in].
        tokens: How many tokens.
    """

    squares: np.ndarray
    tokens: int

    @property
    def mean(self) -> np.ndarray:
        """Mean squared input, float32 [in]; 1 where nothing was seen, as in llama.cpp."""
        if self.tokens == 0:
            return np.ones_like(self.squares)
        return (self.squares / np.float32(self.tokens)).astype(np.float32)


def write_imatrix(matrices: Mapping[str, Inputs], path: Path, dataset: str) -> None:
    """Write an imatrix GGUF that llama.cpp's tools read.

    Args:
        matrices: By the weight's name in GGUF.
        path: Final name; absent until the file is whole.
        dataset: What it was calibrated on.
    """
    with whole_file(path) as part:
        writer = gguf.GGUFWriter(part, "")
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, max(1, _tokens(matrices) // CHUNK))
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, CHUNK)
        for name in sorted(matrices):
            found = matrices[name]
            writer.add_tensor(name + _SUM, found.squares.astype(np.float32).reshape(1, -1))
            writer.add_tensor(name + _COUNT, np.array([[found.tokens]], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> dict[str, Inputs]:
    """An imatrix GGUF, ours or llama.cpp's.

    Raises:
        RpamError: The file is missing, or is none.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise RpamError(
            f"{path}: can't be read as an imatrix GGUF ({error}); check the path, or make it again with `rpam imatrix`."
        ) from None
    tensors = {t.name: np.array(t.data, dtype=np.float32) for t in reader.tensors}
    names = [name.removesuffix(_SUM) for name in tensors if name.endswith(_SUM)]
    if not names or any(name + _COUNT not in tensors for name in names):
        raise RpamError(f"{path}: is no imatrix GGUF (no `*{_SUM}` with `*{_COUNT}`); check the path.")
    return {
        name: Inputs(tensors[name + _SUM].reshape(-1), int(tensors[name + _COUNT].reshape(-1)[0])) for name in names
    }


def check_complete(matrices: Mapping[str, Inputs], source: Path) -> None:
    """Whether every matrix that llama.cpp would look up is there: it says nothing of one that is missing.

    Args:
        matrices: The importance matrix.
        source: The GGUF file that is to be quantized.

    Raises:
        RpamError: One is missing, is of another size, or holds inf or NaN.
    """
    for tensor in read_header(source).tensors:
        if not tensor.is_matrix_of_layer:
            continue
        if tensor.name not in matrices:
            raise RpamError(f"{source}: the importance matrix has nothing on {tensor.name}; make it for this model.")
        squares = matrices[tensor.name].squares
        if len(squares) != tensor.shape[0]:
            raise RpamError(
                f"{source}: the importance matrix has {len(squares)} values for {tensor.name}, which has rows of "
                f"{tensor.shape[0]}; make it for this model."
            )
        if not np.isfinite(squares).all():
            raise RpamError(f"{source}: the importance matrix holds inf or NaN for {tensor.name}; make it anew.")


def _tokens(matrices: Mapping[str, Inputs]) -> int:
    return max((found.tokens for found in matrices.values()), default=0)
