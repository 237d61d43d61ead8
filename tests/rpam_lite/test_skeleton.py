"""One decoder layer as a pure function: the same numbers as the full model's, for every architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from rpam_lite.errors import RpamError
from rpam_lite.streaming.skeleton import Skeleton
from tests.rpam_lite.models import ARCHITECTURES, COMMON, config_of, layer_outputs, random_model


@pytest.mark.parametrize("longest", [None, 29])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_layers_equal_the_full_model(architecture: str, longest: int | None) -> None:
    config = config_of(architecture, num_hidden_layers=4)
    model = random_model(config, 1)
    skeleton = Skeleton(config)
    if longest is not None:
        skeleton.share_masks(longest)
    tensors = model.state_dict()
    ids = torch.randint(3, 97, (3, 17))
    with torch.no_grad():
        expected, expected_logits = layer_outputs(model, input_ids=ids)
        states, calls = skeleton.calls(tensors[skeleton.embedding][ids])
        for i in range(skeleton.layers):
            own = {t: tensors[skeleton.checkpoint_name(i, t)] for t in skeleton.layer_tensors(i)}
            states = skeleton.run_layer(i, own, states, calls[i])
            torch.testing.assert_close(states, expected[i], atol=1e-6, rtol=1e-6)
        normed = skeleton.final_norm(states.flatten(0, 1), {name: tensors[name] for name in skeleton.tail})
        chunks = [skeleton.logits(normed, tensors[skeleton.head][a : a + 40]) for a in (0, 40, 80)]
    torch.testing.assert_close(torch.cat(chunks, -1).view_as(expected_logits), expected_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_tensor_names_and_shapes_are_the_checkpoints(architecture: str) -> None:
    config = config_of(architecture)
    parameters = {name: tuple(p.shape) for name, p in random_model(config, 1).named_parameters()}
    assert Skeleton(config).tensors() == parameters


def test_sliding_and_full_layers_get_their_own_masks() -> None:
    skeleton = Skeleton(config_of("qwen2-sliding", num_hidden_layers=3))
    _, calls = skeleton.calls(torch.randn(1, 12, 32))
    masks = [call.kwargs["attention_mask"] for call in calls]
    assert masks[0] is None
    assert masks[1] is not None
    assert not masks[1][0, 0, 11, 0]
    assert masks[1][0, 0, 11, 10]


def test_sliding_masks_of_shorter_sequences_are_views_of_one() -> None:
    skeleton = Skeleton(config_of("qwen2-sliding", num_hidden_layers=3))
    skeleton.share_masks(20)
    found = [skeleton.calls(torch.randn(2, length, 32))[1][1].kwargs["attention_mask"] for length in (12, 20)]
    assert found[0].shape[-2:] == (12, 12)
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()
    longer = skeleton.calls(torch.randn(1, 21, 32))[1][1].kwargs["attention_mask"]
    assert longer.shape[-2:] == (21, 21)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("gemma4_text", {"num_kv_shared_layers": 2}, "gemma4_text: can't be run one layer at a time"),
        ("gemma3_text", {"head_dim": 16}, "gemma3_text: its embedding does more than look rows up"),
        ("gpt2", {"n_embd": 32, "n_head": 4}, "gpt2: has no list of decoder layers"),
        ("phi", {}, "phi: can't be run one layer at a time .*lm_head"),
        ("gpt_neox", {}, "gpt_neox: can't be run one layer at a time"),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "opt: can't be run one layer at a time"),
    ],
)
def test_other_architectures_are_refused_by_name(kind: str, settings: dict[str, int], reason: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = CONFIG_MAPPING[kind](**COMMON | settings)
    with pytest.raises(RpamError, match=reason):
        Skeleton(config)


def test_layers_that_are_not_a_chain_are_refused() -> None:
    skeleton = Skeleton(config_of("llama"))
    stubs = skeleton._stubs
    forward = stubs[1].forward
    stubs[1].forward = lambda states, *args, **kwargs: forward(states + 1, *args, **kwargs)  # type: ignore[method-assign]
    with pytest.raises(RpamError, match="llama: decoder layer 1 is not called with the output of the layer before it"):
        skeleton.calls(torch.randn(1, 4, 32))
