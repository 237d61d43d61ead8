"""llama.cpp's quantization, run in a process of its own so that an abort there is an error here.

Reads one job as JSON from stdin; writes events as JSON lines to stdout: progress, warnings, sizes.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
from gguf import GGMLQuantizationType

_PROGRESS = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)")
_SIZE = re.compile(r"(model|quant) size\s*=\s*([\d.]+) MiB \(([\d.]+) BPW\)")
_FALLBACK = re.compile(
    r"warning: (\S+)\s+- ncols\s+(\d+) not divisible by\s+(\d+) "
    r"\(required for type\s+(\w+)\) -> falling back to\s+(\w+)"
)
_TYPE_INT, _TYPE_STR = 0, 3


def event(**values: Any) -> None:
    """Tell the parent process something."""
    print(json.dumps(values), flush=True)


class Log:
    """Turns llama.cpp's log into events, line by line."""

    def __init__(self) -> None:
        self.line = ""

    def add(self, text: str) -> None:
        """Take a piece of the log; it may be part of a line."""
        self.line += text
        *whole, self.line = self.line.split("\n")
        for line in whole:
            self._tell(line)

    def _tell(self, line: str) -> None:
        if found := _FALLBACK.search(line):
            name, columns, block, wanted, used = found.groups()
            event(fallback=f"{name} has rows of {columns}, no multiple of {block}: {used} instead of {wanted}")
        if found := _PROGRESS.match(line):
            event(progress=found[1])
        elif found := _SIZE.search(line):
            event(**{found[1]: [float(found[2]), float(found[3])]})
        elif line.strip():
            print(line, file=sys.stderr)


def parameters(job: dict[str, Any], alive: list[Any]) -> Any:
    """llama.cpp's parameters; what they point to is kept in `alive`."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = job["ftype"], job["threads"], job["dry_run"]
    for name in ("output_tensor_type", "token_embedding_type"):
        if job.get(name):
            setattr(params, name, int(GGMLQuantizationType[job[name].upper()]))
    if job["overrides"]:
        overrides = (llama_cpp.llama_model_tensor_override * (len(job["overrides"]) + 1))()
        for entry, (pattern, kind) in zip(overrides, job["overrides"].items(), strict=False):
            entry.pattern, entry.type = pattern.encode(), int(GGMLQuantizationType[kind.upper()])
        params.tt_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_tensor_override))
        alive.append(overrides)
    if job["imatrix"]:
        _add_imatrix(params, Path(job["imatrix"]), job["dataset"], alive)
    return params


def _add_imatrix(params: Any, file: Path, dataset: str, alive: list[Any]) -> None:
    from quant.imatrix import CHUNK, read_imatrix

    matrices = read_imatrix(file)
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrices) + 1))()
    for entry, (name, inputs) in zip(entries, matrices.items(), strict=False):
        mean = inputs.mean
        entry.name, entry.size = name.encode(), mean.size
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        alive.append(mean)
    params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    tokens = max(inputs.tokens for inputs in matrices.values())
    told: dict[str, int | str] = {
        "quantize.imatrix.file": file.name,
        "quantize.imatrix.dataset": dataset,
        "quantize.imatrix.entries_count": len(matrices),
        "quantize.imatrix.chunks_count": max(1, tokens // CHUNK),
    }
    overrides = (llama_cpp.llama_model_kv_override * (len(told) + 1))()
    for override, (key, value) in zip(overrides, told.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, int):
            override.tag, override.value.val_i64 = _TYPE_INT, value
        else:
            override.tag, override.value.val_str = _TYPE_STR, value.encode()[:127]
    params.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override))
    alive += [entries, overrides]


def main() -> int:
    """Do every job of the list on stdin; 0 if all succeeded."""
    log = Log()
    alive: list[Any] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        log.add(text.decode("utf-8", errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    for job in json.load(sys.stdin):
        params = parameters(job, alive)
        status = llama_cpp.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(params))
        log.add("\n")
        if status != 0:
            return 1
        event(done=job["name"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
