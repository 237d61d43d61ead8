"""Importance matrix, quantization with it, divergence and proof, each against another way to know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.gguf.architecture import gguf_names
from export.gguf.write import write_gguf
from quant.divergence import divergence, summarize
from quant.gguf import NEED_IMATRIX, Settings, quantization_types, quantize, sizes
from quant.header import read_header
from quant.imatrix import Inputs, check_complete, read_imatrix, write_imatrix
from quant.proof import prove
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.inputs import squared_inputs
from rpam_lite.streaming.merged import one_parent
from rpam_lite.streaming.passes import Streamed
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource
from rpam_lite.streaming.whole import logits_of
from tests.conftest import make_checkpoint

TEXTS = ["What is 3 + 4 - 5?", "<think>\n12 - 7 = 5</think>", "How many are 99 and 1?"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Rows of 256, so that every type of llama.cpp fits."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    return make_checkpoint(folder, 3, tokenizer, hidden_size=256, intermediate_size=512)


def export(checkpoint: Path, path: Path, file_type: Any = "F32") -> Path:
    source = CheckpointSource(checkpoint)
    write_gguf(source, source.config, checkpoint, path, file_type, "test")
    return path


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("gguf") / "f32.gguf")


def sequences(seed: int, count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 470, (20 + 7 * i,), generator=generator) for i in range(count)]


def collected(checkpoint: Path, ids: list[torch.Tensor]) -> dict[str, Inputs]:
    parent, skeleton = CheckpointSource(checkpoint), Skeleton(checkpoint)
    layers = WeightSource(parent, parent, skeleton)
    model = Streamed(layers, Ends(parent, parent, skeleton, ids), one_parent("short"), torch.float32)
    found = squared_inputs(model, ids, [[0, 1, 2], [3, 5], [4]])
    names = gguf_names(sorted(found), parent.config, checkpoint)
    return {names[n]: Inputs(s.numpy(), sum(map(len, ids))) for n, s in found.items()}


@pytest.fixture(scope="module")
def imatrix(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("imatrix") / "some.imatrix.gguf"
    write_imatrix(collected(checkpoint, sequences(1)), file, "random tokens")
    return file


def test_the_importance_matrix_is_that_of_plain_hooks(checkpoint: Path, imatrix: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        seen[name] = seen.get(name, torch.zeros(())) + inputs[0].double().square().sum(0)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(lambda m, args, name=name: add(f"{name}.weight", args[0]))
    with torch.no_grad():
        for ids in sequences(1):
            model(ids.unsqueeze(0))
    found = read_imatrix(imatrix)
    names = gguf_names(sorted(seen), CheckpointSource(checkpoint).config, checkpoint)
    assert found.keys() == set(names.values())
    tokens = sum(map(len, sequences(1)))
    for name, total in seen.items():
        assert found[names[name]].tokens == tokens
        np.testing.assert_allclose(found[names[name]].mean, (total / tokens).numpy(), rtol=1e-4)


def test_the_file_has_the_form_of_llama_cpps_own(imatrix: Path) -> None:
    reader = gguf.GGUFReader(imatrix)
    values = {key: reader.get_field(key) for key in ("general.type", "imatrix.datasets", "imatrix.chunk_size")}
    assert {k: f.contents() for k, f in values.items() if f} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["random tokens"],
        "imatrix.chunk_size": 512,
    }
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.in_sum2"] == [512, 1]
    assert shapes["blk.0.ffn_down.weight.counts"] == [1, 1]


def test_an_incomplete_importance_matrix_is_refused(source: Path, imatrix: Path, tmp_path: Path) -> None:
    whole = read_imatrix(imatrix)
    check_complete(whole, source)
    name = "blk.1.attn_k.weight"
    broken = {
        f"nothing on {name}": {n: i for n, i in whole.items() if n != name},
        f"has 3 values for {name}, which has rows of 256": whole | {name: Inputs(np.ones(3, np.float32), 5)},
        f"holds inf or NaN for {name}": whole | {name: Inputs(np.full(256, np.nan, np.float32), 5)},
    }
    for message, matrices in broken.items():
        write_imatrix(matrices, tmp_path / "broken.gguf", "x")
        with pytest.raises(RpamError, match=message):
            quantize(source, tmp_path / "out.gguf", "Q4_K_M", Settings(imatrix=tmp_path / "broken.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    with pytest.raises(RpamError, match="can't be read as an imatrix"):
        read_imatrix(tmp_path / "broken.gguf")
    with pytest.raises(RpamError, match="is no imatrix"):
        read_imatrix(source)
    assert not list(tmp_path.glob("out*"))


def test_low_bit_types_need_it_and_use_it(source: Path, imatrix: Path, tmp_path: Path) -> None:
    assert quantization_types().keys() >= NEED_IMATRIX
    with pytest.raises(RpamError, match="IQ3_XXS needs an importance matrix"):
        quantize(source, tmp_path / "out.gguf", "IQ3_XXS")
    with_it = Settings(imatrix=imatrix, dataset="random tokens")
    quantize(source, tmp_path / "with.gguf", "IQ3_XXS", with_it)
    told = read_header(tmp_path / "with.gguf").values
    assert told["quantize.imatrix.file"] == imatrix.name
    assert told["quantize.imatrix.dataset"] == "random tokens"
    assert told["quantize.imatrix.entries_count"] == 14
    quantize(source, tmp_path / "q3.gguf", "Q3_K_M")
    quantize(source, tmp_path / "q3i.gguf", "Q3_K_M", with_it)
    ids = [t.tolist() for t in sequences(2)]
    plain, weighted, worse = divergence(
        source, [tmp_path / f"{n}.gguf" for n in ("q3", "q3i", "with")], ids, [1] * len(ids)
    )
    assert weighted.mean < plain.mean < 1
    assert worse.mean > weighted.mean


def test_tensors_can_be_kept_at_another_type(source: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    settings = Settings(overrides={"blk.0.ffn_down": "q8_0"}, embedding_type="F16")
    fallbacks = quantize(source, tmp_path / "out.gguf", "Q4_K_S", settings, heard.append)
    kinds = {t.name: t.kind.name for t in read_header(tmp_path / "out.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_down.weight"] != "Q8_0"
    assert kinds["token_embd.weight"] == "F16"
    assert not fallbacks
    assert set(heard) == kinds.keys()
    with pytest.raises(RpamError, match="can't be of type 'Q9'"):
        quantize(source, tmp_path / "no.gguf", "Q4_K_S", Settings(overrides={"x": "Q9"}))


def test_rows_that_do_not_divide_are_told(tmp_path: Path, tokenizer: Any) -> None:
    odd = export(make_checkpoint(tmp_path / "odd", 3, tokenizer), tmp_path / "odd.gguf")
    fallbacks = quantize(odd, tmp_path / "out.gguf", "Q4_K_M")
    assert any("has rows of 64, no multiple of 256: q5_0 instead of q4_K" in line for line in fallbacks), fallbacks


def test_sizes_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    told = sizes(source, ["Q8_0", "Q4_K_M", "IQ2_XXS"])
    assert told["IQ2_XXS"].mib < told["Q4_K_M"].mib < told["Q8_0"].mib
    quantize(source, tmp_path / "out.gguf", "Q4_K_M")
    weights = sum(t.size for t in read_header(tmp_path / "out.gguf").tensors)
    assert told["Q4_K_M"].mib == pytest.approx(weights / 2**20, abs=0.01)
    with pytest.raises(RpamError, match=r"llama\.cpp has no type 'Q4'"):
        sizes(source, ["Q4"])


def test_a_killed_child_is_one_clear_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        process = real([sys.executable, "-c", "import sys, time; sys.stdin.read(); time.sleep(60)"], **settings)
        os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(RpamError, match=r"llama.cpp failed to quantize it to Q8_0 \(exit -9; no message\)"):
        quantize(source, tmp_path / "out.gguf", "Q8_0")
    assert not list(tmp_path.glob("out*"))


def test_the_header_is_what_the_gguf_package_reads(source: Path, tmp_path: Path) -> None:
    header, reader = read_header(source), gguf.GGUFReader(source)
    assert [(t.name, list(t.shape), t.kind, t.offset, t.size) for t in header.tensors] == [
        (t.name, t.shape.tolist(), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    for key, value in header.values.items():
        field = reader.get_field(key)
        assert field is not None
        assert field.contents() == pytest.approx(value) if isinstance(value, float) else field.contents() == value
    assert header.number("block_count") == 2
    (tmp_path / "short.gguf").write_bytes(source.read_bytes()[:200])
    with pytest.raises(RpamError, match=r"short\.gguf: its header can't be read"):
        read_header(tmp_path / "short.gguf")


def test_divergence_is_that_of_the_models(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    """Of two F32 files, against transformers in float64."""
    other = make_other(checkpoint, tmp_path / "other")
    ids = [t.tolist() for t in sequences(4, 3)]
    (found,) = divergence(source, [export(other, tmp_path / "other.gguf")], ids, [3, 5, 1])
    klds, same = [], []
    for folder_ids, start in zip(ids, [3, 5, 1], strict=True):
        p, q = (model_logprobs(folder, folder_ids)[start - 1 : -1] for folder in (checkpoint, other))
        klds.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    expected = summarize(torch.cat(klds).numpy(), torch.cat(same).numpy())
    assert found.positions == expected.positions == sum(map(len, ids)) - 9
    assert found.mean == pytest.approx(expected.mean, rel=1e-3)
    assert found.p99 == pytest.approx(expected.p99, rel=1e-3)
    assert found.same_top == expected.same_top
    assert 0 < found.same_top < 1
    (nothing,) = divergence(source, [source], ids, [1, 1, 1])
    assert (nothing.largest, nothing.same_top) == (0.0, 1.0)


def make_other(checkpoint: Path, folder: Path) -> Path:
    """The same model with noise on one matrix."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.02 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(1))
    weights[name] = weights[name].bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def model_logprobs(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logprobs


def test_a_good_file_is_proven_and_a_bad_one_is_not(
    checkpoint: Path, source: Path, tmp_path: Path, tokenizer: Any
) -> None:
    parent = CheckpointSource(checkpoint)
    reference = logits_of(parent, parent.config)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    for file_type, file in (("F32", source), ("F16", export(checkpoint, tmp_path / "f16.gguf", "F16"))):
        proof = prove(file, file_type, TEXTS, ids, reference)
        assert (proof.texts, proof.tokens, proof.same_top) == (3, sum(map(len, ids)), 1.0)
        assert proof.difference is not None
        assert proof.difference < 1e-4 if file_type == "F32" else 1e-5 < proof.difference < 2e-2
    assert prove(source, "F32", TEXTS, ids, None).difference is None
    with pytest.raises(RpamError, match=r"not proven, its logits differ .* F32 allows 0\.0001"):
        prove(tmp_path / "f16.gguf", "F32", TEXTS, ids, reference)
    with pytest.raises(RpamError, match=r"not proven, its tokens differ from the checkpoint's on 'What is"):
        prove(source, "F32", TEXTS, [[7, 8], *ids[1:]], reference)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(RpamError, match=r"cut\.gguf: not proven, llama\.cpp does not run it"):
        prove(cut, "F32", TEXTS, ids, reference)
    assert cut.exists()
    assert json.loads((checkpoint / "config.json").read_text())["hidden_size"] == 256
