"""Random pairs of real shapes, made on the spot, and their calibration sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.shapes import SHAPES, config_of_shape
from rpam_lite.streaming.skeleton import Skeleton


def make_pair(folder: Path, shape: str, spread: float = 0.05, seed: int = 1) -> Path:
    """Two bf16 checkpoints of this shape, `short` and `long`; D is `spread` times as large as S.

    One file a layer, written as it is made, so that no whole model is ever in memory.
    """
    config = config_of_shape(shape)
    skeleton = Skeleton(config)
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor_shape in skeleton.tensors().items():
        parts = name.split(".")
        file = f"layer-{int(parts[2]):03}" if parts[1] == "layers" else parts[-2]
        files.setdefault(file, {})[name] = tensor_shape
    for parent in ("short", "long"):
        (folder / parent).mkdir(parents=True, exist_ok=True)
        (folder / parent / "config.json").write_text(
            json.dumps({**config.to_dict(), **_named(shape)}), encoding="utf-8"
        )
    weight_map: dict[str, str] = {}
    for file, shapes in files.items():
        short = {name: _random(name, s, generator) for name, s in shapes.items()}
        long = {n: t + spread * t.std() * torch.randn(t.shape, generator=generator) for n, t in short.items()}
        for parent, tensors in (("short", short), ("long", long)):
            rounded = {name: t.bfloat16() for name, t in tensors.items()}
            save_file(rounded, folder / parent / f"{file}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, f"{file}.safetensors")
    for parent in ("short", "long"):
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / parent / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def random_questions(vocabulary: int, per_class: int, tokens: int, seed: int = 2) -> CalibrationSet:
    """Random token ids: half of each question is the prompt, half the response."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 * per_class
    ids = torch.randint(0, vocabulary, (count, tokens), generator=generator)
    return CalibrationSet(
        token_ids=list(ids),
        prompt_lengths=[tokens // 2] * count,
        is_long=torch.arange(count) % 2 == 0,
        positions=[torch.arange(1, tokens)] * count,
    )


def _named(shape: str) -> dict[str, Any]:
    kind = SHAPES[shape]["model_type"]
    return {"model_type": kind, "architectures": [{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[kind]]}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return (0.0 if name.endswith("bias") else 1.0) + 0.02 * torch.randn(shape, generator=generator)
    return 0.02 * torch.randn(shape, generator=generator)
