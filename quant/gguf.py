"""llama.cpp's quantization, in a process of its own: an abort there is an error here.

python -m quant.gguf merged-f16.gguf merged-q4_k_m.gguf Q4_K_M 2
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import llama_cpp

from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError

_PREFIX = "LLAMA_FTYPE_MOSTLY_"


def quantization_types() -> dict[str, int]:
    """Every type the installed llama.cpp offers, by its own name, with its number."""
    return {
        name.removeprefix(_PREFIX): int(getattr(llama_cpp, name)) for name in dir(llama_cpp) if name.startswith(_PREFIX)
    }


def quantize(source: Path, target: Path, type_name: str, threads: int) -> None:
    """Quantize a GGUF file; `target` is whole or absent.

    Args:
        source: F32, F16 or BF16 GGUF file.
        target: Final name.
        type_name: llama.cpp's name of the type, such as "Q4_K_M".
        threads: CPU threads.

    Raises:
        RpamError: The type is unknown, or llama.cpp refused or died; its last words are quoted.
    """
    if type_name not in quantization_types():
        known = ", ".join(sorted(quantization_types()))
        raise RpamError(f"`quantize.types`: llama.cpp has no type {type_name!r}; it has {known}.")
    with whole_file(target) as part:
        command = [sys.executable, "-m", "quant.gguf", str(source), str(part), type_name, str(threads)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0:
            words = " ".join(result.stderr.split()[-30:]) or "no message"
            raise RpamError(
                f"{source}: llama.cpp failed to quantize it to {type_name} (exit {result.returncode}; {words})."
            )


def _quantize_here(source: str, target: str, type_name: str, threads: int) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = quantization_types()[type_name]
    params.nthread = threads
    status: int = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    return status


if __name__ == "__main__":
    sys.exit(_quantize_here(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
