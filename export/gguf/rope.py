"""The rope of a config, in either of its spellings, as GGUF says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch

from rpam_lite.errors import RpamError

# Keys of a yarn rope that are written where the config has them: GGUF's writer method, and their names there.
_YARN = {
    "add_rope_scaling_yarn_ext_factor": ("extrapolation_factor",),
    "add_rope_scaling_yarn_attn_factor": ("attention_factor", "attn_factor"),
    "add_rope_scaling_yarn_beta_fast": ("beta_fast",),
    "add_rope_scaling_yarn_beta_slow": ("beta_slow",),
}


@dataclass(frozen=True)
class Rope:
    """A rope: its type, base frequency, and the other values of the config."""

    kind: str
    theta: float
    values: dict[str, Any]

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write its keys, as llama.cpp's converter does."""
        if self.kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(self.kind))
            writer.add_rope_scaling_factor(self.values["factor"])
        if self.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(self.values["original_max_position_embeddings"])
            for method, names in _YARN.items():
                value = next((self.values[n] for n in names if self.values.get(n) is not None), None)
                if value is not None:
                    getattr(writer, method)(value)
        writer.add_rope_freq_base(self.theta)

    def frequency_factors(self, head_size: int) -> torch.Tensor | None:
        """Divisors of the frequencies of a llama3 rope, float32 [head_size / 2]; None of another one."""
        if self.kind != "llama3":
            return None
        frequencies = 1.0 / (self.theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size))
        factor = self.values.get("factor", 8.0)
        low, high = self.values.get("low_freq_factor", 1.0), self.values.get("high_freq_factor", 4.0)
        context = self.values.get("original_max_position_embeddings", 8192)
        factors = []
        for frequency in frequencies:
            length = 2 * math.pi / frequency
            if length < context / high:
                factors.append(1.0)
            elif length > context / low:
                factors.append(factor)
            else:
                smooth = (context / length - low) / (high - low)
                factors.append(1 / ((1 - smooth) / factor + smooth))
        return torch.tensor(factors, dtype=torch.float32)


def read_rope(config: dict[str, Any], folder: Path) -> Rope:
    """The rope, from `rope_theta` and `rope_scaling`, or from `rope_parameters` of transformers 5.

    Raises:
        RpamError: A value is missing or is no number.
    """
    file = folder / "config.json"
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(values, dict):
        raise RpamError(f"{file}: `rope_parameters` is {values!r}, not an object; restore the file.")
    kind = str(values.get("rope_type", values.get("type", "default")))
    theta: Any = values.get("rope_theta", config.get("rope_theta"))
    # transformers may keep the length before scaling beside the rope.
    values = {"original_max_position_embeddings": config.get("original_max_position_embeddings")} | values
    needed = {"linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}.get(kind, ())
    for name, value in (("rope_theta", theta), *((n, values.get(n)) for n in needed)):
        if not isinstance(value, int | float):
            raise RpamError(f"{file}: `{name}` of the rope is {value!r}; it must be a number.")
    return Rope(kind, float(theta), {k: v for k, v in values.items() if v is not None})
