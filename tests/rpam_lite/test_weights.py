"""The weight source: codecs, residencies, sharded checkpoints, LoRA adapters, the activation store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.pair import open_parent
from rpam_lite.checkpoint.ranges import read_bytes
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.streaming.codec import (
    CODECS,
    CodecName,
    Pair,
    coarsest_codec,
    codec_error,
    encode,
    expected_error,
    layout,
)
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import DiskStore
from rpam_lite.streaming.survey import survey
from rpam_lite.streaming.weights import WeightSource
from tests.rpam_lite.models import config_of, random_model, save_pair

ERRORS = {"exact": (0, 0), "bf16": (0.005, 0.005), "int8": (0.01, 0.01), "int8-nf4": (0.01, 0.12), "nf4": (0.12, 0.12)}


def tensors(spread: float, shape: tuple[int, ...] = (70, 33)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    short = torch.randn(shape, generator=generator)
    return short, short + spread * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("spread", [0.01, 0.4])
def test_the_task_vector_survives_whatever_its_size(codec: str, spread: float) -> None:
    short, long = tensors(spread)
    parts = encode(codec, short, long)  # type: ignore[arg-type]
    assert [(p.dtype, tuple(p.shape)) for p in parts] == layout(codec, (70, 33), torch.float32, torch.float32)  # type: ignore[arg-type]
    found_short, delta = Pair(codec, (70, 33), parts).decode()  # type: ignore[arg-type]
    assert (delta - (long - short)).norm() <= ERRORS[codec][1] * (long - short).norm()
    assert (found_short - short).norm() <= ERRORS[codec][0] * short.norm()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_the_error_that_is_expected_is_found(codec: CodecName, spread: float) -> None:
    short, long = tensors(spread, (128, 256))
    pair = Pair(codec, (128, 256), encode(codec, short, long))
    error, norm = codec_error(pair, short, long)
    assert (error / norm) ** 0.5 == pytest.approx(expected_error(codec, spread), rel=0.15)


def test_the_coarsest_codec_that_will_do() -> None:
    """S in nf4 is 9 % off: that is little beside a large task vector only."""
    assert [coarsest_codec(r, 0.3) for r in (0.5, 0.1, 0.01, 0.001)] == ["nf4", "int8-nf4", "bf16", "exact"]


def test_parents_quantized_apart_would_lose_it() -> None:
    """Why the codecs take S and D: the same nf4 on S and L leaves mostly noise."""
    short, long = tensors(0.01)
    zeros = torch.zeros_like(short)
    apart = [Pair("nf4", (70, 33), encode("nf4", t, zeros)).decode()[0] for t in (short, long)]
    lost = apart[1] - apart[0] - (long - short)
    assert lost.norm() > 2 * (long - short).norm()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair = save_pair(tmp_path_factory.mktemp("sharded"), "llama", dtype=torch.bfloat16)
    assert len(list((pair / "long").glob("*.safetensors"))) > 1
    return pair


def source_of(pair: Path, scratch: Path, codec: str, residency: str) -> WeightSource:
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    return WeightSource(long, short, Skeleton(pair / "short"), codec, residency, scratch=scratch)  # type: ignore[arg-type]


def decoded(source: WeightSource, order: list[int]) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    return [{name: pair.decode() for name, pair in pairs.items()} for _, pairs in source.sweep(order)]


@pytest.mark.parametrize("residency", ["device", "host", "disk"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_residency_gives_the_same_layers(sharded: Path, tmp_path: Path, codec: str, residency: str) -> None:
    reference = source_of(sharded, tmp_path / "a", codec, "device")
    source = source_of(sharded, tmp_path / "b", codec, residency)
    order = [0, 1, 2, 2, 1, 0, 2]
    for layer, found in zip(order, decoded(source, order), strict=True):
        expected = {name: pair.decode() for name, pair in reference.layer(layer).items()}
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name][0], expected[name][0])
            assert torch.equal(found[name][1], expected[name][1])
    rows = survey(source)
    assert [row.layer for row in rows] == [0, 1, 2]
    assert all(row.codec_error <= 1.5 * expected_error(source.codec, row.task_vector) for row in rows)
    assert all(0.01 < row.task_vector < 1 for row in rows)


def test_layers_are_the_checkpoints_own(sharded: Path, tmp_path: Path) -> None:
    long, short = (AutoModelForCausalLM.from_pretrained(sharded / p).state_dict() for p in ("long", "short"))
    for layer, found in enumerate(decoded(source_of(sharded, tmp_path, "exact", "disk"), [0, 1, 2])):
        for tensor, (s, d) in found.items():
            name = f"model.layers.{layer}.{tensor}"
            assert torch.equal(s, short[name].float())
            assert torch.equal(d, long[name].float() - short[name].float())


def test_an_encoded_scratch_file_is_reused(sharded: Path, tmp_path: Path) -> None:
    source_of(sharded, tmp_path, "int8", "disk")
    file = tmp_path / "layers-int8.bin"
    before = file.stat().st_mtime_ns
    again = source_of(sharded, tmp_path, "int8", "disk")
    assert file.stat().st_mtime_ns == before
    assert 0 < again.codec_error(1) < 0.1


def test_a_sweep_that_is_left_early_can_be_followed_by_another(sharded: Path, tmp_path: Path) -> None:
    source = source_of(sharded, tmp_path, "exact", "disk")
    for layer, _ in source.sweep([0, 1, 2]):
        if layer == 1:
            break
    assert [layer for layer, _ in source.sweep([2, 0])] == [2, 0]


@pytest.fixture(scope="module", params=["plain", "rslora", "embeddings"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"adapter-{request.param}")
    base = random_model(config_of("llama"), 1)
    base.save_pretrained(folder / "base")
    more = {
        "plain": {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"up_proj": 2}},
        "rslora": {"use_rslora": True},
        "embeddings": {"modules_to_save": ["lm_head"]},
    }[request.param]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj", "down_proj"], **more)  # type: ignore[arg-type]
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter")
    return folder


def test_an_adapter_gives_the_merged_models_tensors(adapted: Path) -> None:
    source = open_parent(adapted / "adapter", adapted / "base")
    model = AutoModelForCausalLM.from_pretrained(adapted / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapted / "adapter")).merge_and_unload()
    expected = dict(merged.named_parameters())
    assert set(source.names()) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(source.get(name).float(), tensor.detach(), atol=1e-6, rtol=1e-5)
        out = torch.empty(source.shape(name), dtype=source.dtype(name))
        source.read_into(name, out)
        assert torch.equal(out, source.get(name))
        assert torch.equal(source.rows(name, 3, 9), source.get(name)[3:9])


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_an_adapter_streams_like_a_checkpoint(adapted: Path, tmp_path: Path, codec: str) -> None:
    long, short = open_parent(adapted / "adapter", adapted / "base"), open_parent(adapted / "base")
    source = WeightSource(long, short, Skeleton(adapted / "base"), codec, "disk", scratch=tmp_path)  # type: ignore[arg-type]
    _, delta = source.layer(1)["mlp.up_proj.weight"].decode()
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(delta, long.get(name) - short.get(name), atol=2e-3, rtol=0)
    _, untouched = source.layer(1)["mlp.gate_proj.weight"].decode()
    assert untouched.abs().max() == 0


def test_an_adapter_without_its_base_says_so(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for file in (adapted / "adapter").iterdir():
        text = file.read_bytes()
        if file.name == "adapter_config.json":
            text = text.replace(b'"base_model_name_or_path": null', b'"base_model_name_or_path": "org/model"')
        (tmp_path / "a" / file.name).write_bytes(text)
    with pytest.raises(RpamError, match=r"is a LoRA adapter over .*`parents\.base`"):
        open_parent(tmp_path / "a")


def test_an_adapter_over_another_base_is_refused(adapted: Path, tmp_path: Path) -> None:
    random_model(config_of("llama", hidden_size=64), 1).save_pretrained(tmp_path / "other")
    with pytest.raises(RpamError, match="the adapter was trained on another base"):
        open_parent(adapted / "adapter", tmp_path / "other")


def test_dora_is_refused_by_name(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    with pytest.raises(RpamError, match="`use_dora` is True, which is not supported"):
        open_parent(tmp_path, adapted / "base")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` is 'pissa', which takes a part out of the base"),
        ({"init_lora_weights": "olora"}, "`init_lora_weights` is 'olora', which takes a part out of the base"),
        (
            {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
            "`alora_invocation_tokens` is .* not supported",
        ),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens.weight is one side of an embedding and a head"),
        ({"target_modules": ["embed_tokens"]}, "is part of LoRA of an embedding"),
        ({"bias": "all"}, r"q_proj\.base_layer\.bias is trained biases"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    base = random_model(config_of("qwen2", tie_word_embeddings=True), 1)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings}))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RpamError, match=says):
        open_parent(tmp_path / "adapter", tmp_path / "base")


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"abc")
    with pytest.raises(RpamError, match="ends at byte 3, 5 too early"):
        read_bytes(file, 0, torch.empty(8, dtype=torch.uint8))


def test_the_disk_store_keeps_and_drops(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "s", [(2, 3), (1, 5)], torch.float32, torch.device("cpu"))
    first, second = torch.randn(2, 3), torch.randn(1, 5)
    store.put(4, 0, first)
    store.put(4, 1, second)
    store.put(4, 0, first + 1)
    assert torch.equal(store.get(4, 0), first + 1)
    assert torch.equal(store.get(4, 1), second)
    assert (tmp_path / "s/states-004.bin").stat().st_size == 4 * 11
    store.drop(4)
    assert list((tmp_path / "s").iterdir()) == []
