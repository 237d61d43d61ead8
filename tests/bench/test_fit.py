"""What the benchmark of the joint step compares is the same gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.fit import WAYS, capture_pair, naive, streamed_step
from tests.conftest import make_checkpoint


@pytest.mark.parametrize("way", WAYS)
def test_the_naive_gradient_is_the_streamed_one(tmp_path: Path, tokenizer: Any, way: str) -> None:
    for seed, parent in enumerate(("short", "long")):
        make_checkpoint(tmp_path / parent, seed, tokenizer)
    capture_pair(tmp_path, per_class=2, tokens=12)
    expected, streamed = naive(tmp_path)(), streamed_step(tmp_path, WAYS[way])()
    assert expected.norm() > 0
    torch.testing.assert_close(streamed, expected, rtol=1e-3, atol=1e-5)
