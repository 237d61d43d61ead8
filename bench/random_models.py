"""Random checkpoints and pairs of real shapes, made on the spot, and calibration sets for them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch

from rpam_lite.checkpoint.layout import weight_index
from rpam_lite.checkpoint.source import INDEX
from rpam_lite.checkpoint.stream import JOURNAL, write_weights
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.streaming.skeleton import Skeleton

KINDS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALE = 0.02


class RandomSource:
    """Random bf16 weights of a shape, computed when asked for; `spread` adds a task vector so many times as large."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int, spread: float = 0.0) -> None:
        self._shapes, self._seed, self._spread = shapes, seed, spread

    def names(self) -> list[str]:
        """Tensor names."""
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._shapes[name]

    def get(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.rows(name, 0, self._shapes[name][0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows; norms lie around 1."""
        shape = (stop - start, *self._shapes[name][1:])
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{name}/{start}".encode()))
        values = SCALE * torch.randn(shape, generator=generator)
        if self._spread:
            values += self._spread * SCALE * torch.randn(shape, generator=generator)
        return (values + 1 if "norm" in name else values).bfloat16()


def make_checkpoint(folder: Path, shape: str, seed: int, spread: float = 0.0) -> None:
    """Two shards of random bf16 weights, and a config; with a `spread`, the same weights plus a task vector."""
    config = config_of_shape(shape)
    source = RandomSource(Skeleton(config).tensors(), seed, spread)
    shapes = {name: source.shape(name) for name in source.names()}
    size = 2 * sum(torch.Size(s).numel() for s in shapes.values())
    shards = write_weights(source, folder, torch.bfloat16, int(0.55 * size), f"{seed} {spread}")
    (folder / JOURNAL).unlink()
    (folder / INDEX).write_text(json.dumps(weight_index(shards, shapes, torch.bfloat16)), encoding="utf-8")
    told = {**config.to_dict(), "architectures": [KINDS[config.model_type]], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")


def make_pair(folder: Path, shape: str, spread: float = 0.05, seed: int = 1) -> None:
    """Two checkpoints, `short` and `long`; the task vector is `spread` times as large as the weights."""
    make_checkpoint(folder / "short", shape, seed)
    make_checkpoint(folder / "long", shape, seed, spread)


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
