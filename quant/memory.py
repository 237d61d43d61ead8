"""What llama.cpp allocates beside the weights: KV cache and compute buffer, as it says itself.

    python -m quant.memory FILE CONTEXT CACHE_TYPE

makes a context in a process of its own, which needs as much memory as it tells; the weights stay mapped.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
from gguf import GGMLQuantizationType

from rpam_lite.errors import RpamError

CACHE_TYPES = ("F16", "Q8_0", "Q4_0")
_BUFFER = re.compile(r"(KV|compute) buffer size\s*=\s*([\d.]+) MiB")


@dataclass(frozen=True)
class ContextMemory:
    """In MiB."""

    cache: float
    compute: float

    @property
    def total(self) -> float:
        """Both."""
        return self.cache + self.compute


def context_memory(file: Path, context: int, cache_type: str) -> ContextMemory:
    """Memory of a context of this many tokens.

    Args:
        file: A GGUF file of the model, of any type: the buffers do not depend on it.
        context: Tokens.
        cache_type: Type of the cache's keys and values.

    Raises:
        RpamError: An unknown cache type, or llama.cpp can't make the context.
    """
    if cache_type not in CACHE_TYPES:
        raise RpamError(f"--cache-type {cache_type}: must be one of {', '.join(CACHE_TYPES)}.")
    command = [sys.executable, "-m", "quant.memory", str(file), str(context), cache_type]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode != 0:
        words = " ".join(result.stderr.split()[-20:])
        raise RpamError(f"{file}: llama.cpp can't make a context of {context} tokens there ({words}); lower --context.")
    return ContextMemory(**json.loads(result.stdout.splitlines()[-1]))


def _measure(file: str, context: int, cache_type: str) -> int:
    lines: list[str] = [""]

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        lines[0] += text.decode("utf-8", errors="replace")

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = context, 1
    params.type_k = params.type_v = int(GGMLQuantizationType[cache_type])
    made = model and llama_cpp.llama_init_from_model(model, params)
    if not made:
        print(lines[0][-2000:], file=sys.stderr)
        return 1
    sums = {"KV": 0.0, "compute": 0.0}
    for kind, size in _BUFFER.findall(lines[0]):
        sums[kind] += float(size)
    print(json.dumps({"cache": sums["KV"], "compute": sums["compute"]}))
    return 0


if __name__ == "__main__":
    sys.exit(_measure(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
