"""The pair that the GPU benchmark makes up."""

from __future__ import annotations

import torch

from bench.gpu_fit import BLOCK, random_pair


def test_rows_of_a_made_up_tensor_are_those_of_the_whole() -> None:
    long, short, skeleton = random_pair("qwen2.5-0.5b", 1, torch.device("cpu"))
    assert skeleton.layers == 1
    name = "model.embed_tokens.weight"
    assert short.shape(name)[0] * short.shape(name)[1] > BLOCK
    whole = short.get(name)
    for start, stop in ((0, 3), (18_000, 19_000), (151_000, 151_936)):
        assert torch.equal(short.rows(name, start, stop), whole[start:stop])
    assert not torch.equal(long.rows(name, 0, 3), whole[:3])
