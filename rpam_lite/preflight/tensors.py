"""Findings about tensors, from safetensors headers: names, shapes, types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rpam_lite.checkpoint.source import ParentSource
from rpam_lite.errors import some
from rpam_lite.preflight.findings import Finding
from rpam_lite.streaming.skeleton import Skeleton

_FLOATS = {"bfloat16", "float16", "float32"}
# What bitsandbytes, GPTQ and AWQ leave beside a weight.
_QUANTIZED = (".absmax", ".quant_map", ".nested_absmax", ".SCB", ".weight_format", ".qweight", ".qzeros", ".scales")


def check_tensors(source: ParentSource, config: Any) -> list[Finding]:
    """Whether a checkpoint holds what its architecture needs, unquantized.

    Raises:
        RpamError: The architecture can't be streamed.
    """
    folder, names = source.folder, source.names()
    if left := [n for n in names if n.endswith(_QUANTIZED) or ".quant_state." in n]:
        message = f"{folder}: holds quantized weights ({some(left)}); use the unquantized checkpoint."
        return [Finding("ERROR", "quantized", message)]
    expected = Skeleton(config).tensors()
    return [*_types(source), *_names(source, expected, config.model_type)]


def _types(source: ParentSource) -> Iterator[Finding]:
    types = {str(source.dtype(n)).removeprefix("torch.") for n in source.names()}
    if strange := sorted(types - _FLOATS):
        message = f"{source.folder}: holds {some(strange)} tensors, which can't be merged; use the original checkpoint."
        yield Finding("ERROR", "dtype", message)
    elif len(types) > 1:
        yield Finding("INFO", "dtype", f"{source.folder}: holds {some(sorted(types))}.", "works in float32 anyway")


def _names(source: ParentSource, expected: Mapping[str, tuple[int, ...]], model_type: str) -> Iterator[Finding]:
    folder, names = source.folder, set(source.names())
    if missing := sorted(expected.keys() - names):
        yield Finding("ERROR", "tensors", f"{folder}: lacks {some(missing)}; download it again.")
    if extra := sorted(names - expected.keys()):
        message = f"{folder}: holds {some(extra)}, which {model_type} does not have; use the original checkpoint."
        yield Finding("ERROR", "tensors", message)
    for name in sorted(names & expected.keys()):
        if source.shape(name) != expected[name]:
            message = f"{folder}: {name} has shape {source.shape(name)}, its config says {expected[name]}."
            yield Finding("ERROR", "tensors", message)


def check_range(sources: list[ParentSource], dtype: str) -> Iterator[Finding]:
    """float16 ends at 65,504; bfloat16 and float32 do not."""
    wider = [s for s in sources if any(str(s.dtype(n)) != "torch.float16" for n in s.names())]
    if dtype == "float16" and wider:
        message = f"{some([s.folder for s in wider])}: may hold values beyond float16's 65504."
        yield Finding("INFO", "fp16-range", message, "stops at the first one and names its tensor", "merge.dtype")
