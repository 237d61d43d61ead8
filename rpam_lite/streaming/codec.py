"""How the two parents' tensors are held: exactly, or in fewer bits.

A codec is applied to S and to the task vector D = L - S, never to S and L apart: two independent
roundings would bury a small D in noise, while a rounding of D itself stays small beside D.

    exact     both tensors as the checkpoints store them, D formed in fp32 when decoded: no error
    bf16      S and D in bfloat16
    int8      S and D in blocks of 64 with an fp32 scale: 8.5 bits a value each
    int8-nf4  S as in int8, D as in nf4: 6.5 bits a value on average
    nf4       S and D in NormalFloat4 blocks of 64 (bitsandbytes): 4.5 bits a value each

The error of S moves both parents and their merge alike, but it moves them: where D is much smaller
than S, an S in nf4 is another model. Tensors of one dimension (norms, biases) are always held
exactly; they are next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, prod
from typing import Literal, get_args

import torch

from rpam_lite.recipe.fitting import CodecName

_Rounding = Literal["bf16", "int8", "nf4"]
CODECS: tuple[CodecName, ...] = get_args(CodecName)
BLOCK = 64
# How S and D are rounded.
_ROUNDINGS: dict[CodecName, tuple[_Rounding, _Rounding]] = {
    "bf16": ("bf16", "bf16"),
    "int8": ("int8", "int8"),
    "int8-nf4": ("int8", "nf4"),
    "nf4": ("nf4", "nf4"),
}
# Bits a value, and the relative error on Gaussian weights.
_BITS: dict[_Rounding, float] = {"bf16": 16, "int8": 8 + 32 / BLOCK, "nf4": 4 + 32 / BLOCK}
_ERRORS: dict[_Rounding, float] = {"bf16": 0.0017, "int8": 0.006, "nf4": 0.092}

Shape = tuple[int, ...]
Part = tuple[torch.dtype, Shape]  # how one piece of an encoded tensor is stored


@dataclass(frozen=True)
class Pair:
    """One tensor of both parents, encoded.

    Attributes:
        codec: How.
        shape: The tensor's shape.
        parts: Its encoded pieces, in the order of `layout`; views into a layer's buffer.
    """

    codec: CodecName
    shape: Shape
    parts: Sequence[torch.Tensor]

    def decode(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """S and D = L - S in `dtype`, on the parts' device; new tensors, free to be changed in place."""
        if self.codec == "exact":
            short, long = (part.to(dtype, copy=True) for part in self.parts)
            return short, long.sub_(short)
        of_short, of_delta = _ROUNDINGS[self.codec]
        half = len(_layout(of_short, self.shape))
        return _decode(of_short, self.parts[:half], self.shape, dtype), _decode(
            of_delta, self.parts[half:], self.shape, dtype
        )


def bits(codec: CodecName) -> float | None:
    """Bits a value, the mean over S and D; None for `exact`: as stored."""
    return None if codec == "exact" else sum(_BITS[r] for r in _ROUNDINGS[codec]) / 2


def expected_error(codec: CodecName, task_vector: float) -> float:
    """Error of S and D together relative to ||D||, for Gaussian weights.

    Args:
        codec: How both are held.
        task_vector: ||D|| / ||S||.
    """
    if codec == "exact":
        return 0.0
    of_short, of_delta = (_ERRORS[r] for r in _ROUNDINGS[codec])
    return hypot(of_short / max(task_vector, 1e-30), of_delta)


def coarsest_codec(task_vector: float, limit: float) -> CodecName:
    """The codec of the fewest bits whose expected error stays within the limit."""
    return next(c for c in reversed(CODECS) if expected_error(c, task_vector) <= limit)


def codec_of(name: CodecName, shape: Shape) -> CodecName:
    """The codec that a tensor of this shape gets when `name` is asked for."""
    return name if len(shape) > 1 else "exact"


def layout(codec: CodecName, shape: Shape, short_dtype: torch.dtype, long_dtype: torch.dtype) -> list[Part]:
    """Types and shapes of the pieces that `encode` makes."""
    if codec == "exact":
        return [(short_dtype, shape), (long_dtype, shape)]
    of_short, of_delta = _ROUNDINGS[codec]
    return _layout(of_short, shape) + _layout(of_delta, shape)


def _layout(rounding: _Rounding, shape: Shape) -> list[Part]:
    if rounding == "bf16":
        return [(torch.bfloat16, shape)]
    blocks = -(-prod(shape) // BLOCK)
    values: Part = (torch.int8, (blocks, BLOCK)) if rounding == "int8" else (torch.uint8, (blocks * BLOCK // 2,))
    return [values, (torch.float32, (blocks,))]


def encode(codec: CodecName, short: torch.Tensor, long: torch.Tensor) -> list[torch.Tensor]:
    """The pieces of one tensor of both parents."""
    if codec == "exact":
        return [short, long]
    dtype = torch.promote_types(torch.float32, torch.promote_types(short.dtype, long.dtype))
    of_short, of_delta = _ROUNDINGS[codec]
    return _encode(of_short, short.to(dtype)) + _encode(of_delta, long.to(dtype) - short.to(dtype))


def _encode(rounding: _Rounding, tensor: torch.Tensor) -> list[torch.Tensor]:
    if rounding == "bf16":
        return [tensor.bfloat16()]
    blocks = _blocks(tensor)
    if rounding == "int8":
        scale = blocks.abs().amax(-1) / 127
        return [(blocks / scale.clamp_min(1e-30).unsqueeze(-1)).round().to(torch.int8), scale]
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(blocks.flatten(), blocksize=BLOCK, quant_type="nf4")
    return [packed.flatten(), state.absmax]


def _decode(rounding: _Rounding, parts: Sequence[torch.Tensor], shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    if rounding == "bf16":
        return parts[0].to(dtype, copy=True)
    if rounding == "int8":
        values, scale = parts
        decoded: torch.Tensor = values.to(dtype) * scale.to(dtype).unsqueeze(-1)
        return decoded.flatten()[: prod(shape)].view(shape)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    packed, absmax = parts
    state = QuantState(
        absmax=absmax,
        shape=torch.Size([absmax.numel() * BLOCK]),
        code=_nf4_values(packed.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
    )
    values = dequantize_4bit(packed.view(-1, 1), state)
    flat: torch.Tensor = values.flatten()
    return flat[: prod(shape)].view(shape).to(dtype)


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.float().flatten()
    padding = -flat.numel() % BLOCK
    return torch.nn.functional.pad(flat, (0, padding)).view(-1, BLOCK)


def _nf4_values(device: torch.device) -> torch.Tensor:
    from bitsandbytes.functional import get_4bit_type

    values: torch.Tensor = get_4bit_type("nf4", device=device)
    return values


def codec_error(pair: Pair, short: torch.Tensor, long: torch.Tensor) -> tuple[float, float]:
    """Squared norms of the error of the decoded S and D together, and of D itself, so that layers can be summed."""
    decoded_short, decoded = pair.decode()
    exact = long.float() - short.float()
    error = (decoded_short - short.float()).square().sum() + (decoded - exact).square().sum()
    return float(error), float(exact.square().sum())
