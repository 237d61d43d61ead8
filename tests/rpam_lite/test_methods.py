"""The merge methods beside ours, each against a plain reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.merge import methods
from rpam_lite.merge.apply import MethodSource
from rpam_lite.merge.methods import method_of
from rpam_lite.merge.models import Models, Tensors
from rpam_lite.merge.verify import verify
from rpam_lite.merge.wudi import interference
from rpam_lite.pipeline.opening import Silent, mute
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.statistics import load_statistics, run_statistics
from rpam_lite.recipe import load_recipe
from tests.conftest import make_checkpoint


def tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Long, short and base."""
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(*shape, generator=generator)
    return (*(base + 0.3 * torch.randn(*shape, generator=generator) for _ in range(2)), base)


def run(name: str, parts: tuple[torch.Tensor, ...], **options: float) -> Any:
    method, chosen = method_of(name, options)
    return method.merge(Tensors("some", *parts, seed=1), chosen).numpy().astype(np.float64)


def as_double(*values: torch.Tensor) -> list[Any]:
    return [v.numpy().astype(np.float64) for v in values]


def test_scalar_and_task_arithmetic() -> None:
    parts = tensors(7, 5)
    l, s, b = as_double(*parts)  # noqa: E741
    np.testing.assert_allclose(run("scalar", parts, weight=0.3), s + 0.3 * (l - s), atol=1e-6)
    found = run("task_arithmetic", parts, long=0.9, short=0.4)
    np.testing.assert_allclose(found, b + 0.9 * (l - b) + 0.4 * (s - b), atol=1e-6)


def trimmed(vector: Any, density: float) -> Any:
    flat = vector.ravel()
    order = np.argsort(-np.abs(flat))
    kept = np.zeros_like(flat)
    kept[order[: int(density * flat.size)]] = flat[order[: int(density * flat.size)]]
    return kept.reshape(vector.shape)


def test_ties() -> None:
    """Trim, elect the sign with more mass, mean over the vectors that have it (Yadav et al., section 4)."""
    parts = tensors(16, 12)
    l, s, b = as_double(*parts)  # noqa: E741
    vectors = [trimmed(l - b, 0.4), trimmed(s - b, 0.4)]
    sign = np.sign(vectors[0] + vectors[1])
    agreeing = [np.where(np.sign(v) == sign, v, 0.0) for v in vectors]
    count = np.maximum(sum((a != 0).astype(int) for a in agreeing), 1)
    expected = b + (0.8 * agreeing[0] + 0.8 * agreeing[1]) / count
    np.testing.assert_allclose(run("ties", parts, long=0.8, short=0.8, density=0.4), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_of_two_equal_parents_each_gives_that_parent(name: str) -> None:
    long, _, base = tensors(16, 12)
    options = {} if name == "task_arithmetic" else {"density": 1.0}
    np.testing.assert_allclose(run(name, (long, long, base), **options), *as_double(long), atol=1e-6)


def test_dare_drops_at_random_and_rescales() -> None:
    parts = tensors(200, 50)
    l, s, b = as_double(*parts)  # noqa: E741
    found = run("dare_linear", parts, density=0.25) - b
    options = [0.5 / 0.25 * (x * (l - b) + y * (s - b)) for x in (0, 1) for y in (0, 1)]
    which = np.argmin([np.abs(found - o) for o in options], axis=0)
    assert np.min([np.abs(found - o) for o in options], axis=0).max() < 1e-5
    shares = [(which == i).mean() for i in range(4)]
    np.testing.assert_allclose(shares, [0.5625, 0.1875, 0.1875, 0.0625], atol=0.02)


def test_dare_ties_keeps_the_elected_sign() -> None:
    parts = tensors(200, 50)
    l, s, b = as_double(*parts)  # noqa: E741
    found = run("dare_ties", parts, density=0.5) - b
    vectors = [l - b, s - b]
    both = np.sign(vectors[0]) == np.sign(vectors[1])
    agrees = (np.sign(found) == np.sign(vectors[0])) | (np.abs(found) < 1e-6)
    assert agrees[both].all()
    assert 0.2 < (np.abs(found) < 1e-6).mean() < 0.3


def test_wudi_lowers_the_interference_of_linear_layers_only() -> None:
    long, short, base = tensors(16, 12)
    vectors = [long - base, short - base]
    method, options = method_of("wudi", {"steps": 200, "learning_rate": 1e-2})
    found = method.merge(Tensors("model.layers.0.mlp.up_proj.weight", long, short, base), options) - base
    # The closed form of the minimum: t (sum_k C_k) = sum_k t_k C_k with C_k = t_k^T t_k / |t_k|^2.
    grams = [v.T @ v / v.square().sum() for v in vectors]
    best = sum(v @ g for v, g in zip(vectors, grams, strict=True)) @ torch.linalg.inv(sum(grams))  # type: ignore[arg-type]
    lowest, reached, start = (float(interference(t, vectors)) for t in (best, found, sum(vectors)))  # type: ignore[arg-type]
    assert lowest < reached < lowest + 0.05 * (start - lowest)
    outside = method.merge(Tensors("model.embed_tokens.weight", long, short, base), options)
    torch.testing.assert_close(outside, base + (vectors[0] + vectors[1]) / 2)


@pytest.fixture
def triple(pair: Path, tokenizer: Any) -> Path:
    make_checkpoint(pair / "base", 3, tokenizer)
    return pair


def source_of(folder: Path, name: str, **options: float) -> MethodSource:
    long, short, _ = open_pair(folder / "long", folder / "short", None, "long")
    method, chosen = method_of(name, options)
    base = CheckpointSource(folder / "base") if "base" in method.needs else None
    return MethodSource(method, chosen, long, short, base, 7, torch.bfloat16)


@pytest.mark.parametrize("name", [m.name for m in methods.methods().values() if m.measure is None])
def test_written_and_verified_the_same_bytes_on_any_number_of_threads(triple: Path, tmp_path: Path, name: str) -> None:
    options = {"steps": 20.0} if name == "wudi" else {}
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        source = source_of(triple, name, **options)
        folder = tmp_path / str(threads)
        write_checkpoint(source, source.long.config, triple / "long", folder, torch.bfloat16, {}, chunk_values=999)
        verify(folder, source_of(triple, name, **options), source.long.config, seed=1)
        found.append((folder / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    merged = load_file(tmp_path / "1" / "model.safetensors")
    tensor = "model.layers.0.mlp.up_proj.weight"
    whole = source_of(triple, name, **options)
    assert torch.equal(merged[tensor], whole.get(tensor))


def test_a_whole_tensor_is_made_on_one_thread_so_that_its_last_bits_stay(
    triple: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Counting(Mine):
        whole = True

        def merge(self, tensors: Tensors, options: Mapping[str, float]) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return tensors.short

    monkeypatch.setattr(methods, "entry_points", lambda group: [entry("mine", Counting)])
    torch.set_num_threads(2)
    source_of(triple, "mine").get("model.norm.weight")
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_each_tensor_has_its_own_random_numbers(triple: Path) -> None:
    source = source_of(triple, "dare_linear", long=1.0, short=0.0, density=0.5)
    masks = []
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"):
        base = CheckpointSource(triple / "base").get(name).float()
        masks.append((source.exact_rows(name, 0, 128) - base).abs() > 1e-6)
    assert 0.4 < (masks[0] ^ masks[1]).float().mean() < 0.6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["scalar", "ties", "dare_linear", "dare_ties", "wudi"])
def test_on_a_gpu_it_is_the_same_merge(triple: Path, name: str) -> None:
    here, there = source_of(triple, name), source_of(triple, name)
    there.device = torch.device("cuda")
    tensor = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(there.get(tensor), here.get(tensor), atol=0.01, rtol=0.01)


class Mine:
    """What another package would bring."""

    name, source, needs, whole, measure = "mine", "nowhere", frozenset[str](), False, None
    options: Mapping[str, float] = {"more": 1.0}

    def merge(self, tensors: Tensors, options: Mapping[str, float]) -> torch.Tensor:
        return tensors.short + options["more"]


def entry(name: str, load: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, value="package:object", load=load)


def test_another_package_can_bring_a_method(triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry("mine", Mine)])
    source = source_of(triple, "mine", more=2.0)
    short = CheckpointSource(triple / "short").get("model.norm.weight").float()
    assert torch.equal(source.exact_rows("model.norm.weight", 0, 64), short + 2)


def test_what_is_wrong_with_a_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RpamError, match=r"`merge\.method` 'dare-ties': unknown; known are rpam, scalar.*dare_ties"):
        method_of("dare-ties", {})
    with pytest.raises(RpamError, match=r"`merge\.options\.k`: ties has no such option; it has long, short, density"):
        method_of("ties", {"k": 0.2})
    for share in (-1.0, 0.0, 1.5):
        with pytest.raises(RpamError, match="must be above 0"):
            method_of("qa_merging", {"share": share})
    for density in (-1.0, 0.0, 1.5):
        with pytest.raises(RpamError, match="must be above 0"):
            method_of("dare_linear", {"density": density})
    for option, value in (("steps", 2.5), ("steps", -1.0), ("learning_rate", 0.0), ("learning_rate", float("inf"))):
        with pytest.raises(RpamError, match=f"`merge.options.{option}` .*must be"):
            method_of("wudi", {option: value})
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry("ties", Mine)])
    with pytest.raises(RpamError, match="that name is taken"):
        methods.methods()
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry("broken", lambda: 1 / 0)])
    with pytest.raises(RpamError, match=r"broken of package:object: can't be loaded \(division by zero\)"):
        methods.methods()


def test_another_packages_method_may_measure(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Measuring(Mine):
        def measure(self, models: Models, options: Mapping[str, float]) -> dict[str, torch.Tensor]:
            return {"width": torch.tensor([float(models.skeleton.config.hidden_size)])}

    monkeypatch.setattr(methods, "entry_points", lambda group: [entry("mine", Measuring)])
    file = tmp_path / "mine.yaml"
    told = {
        "version": 1,
        "name": "mine",
        "parents": {"long": str(pair / "long"), "short": str(pair / "short")},
        "label": {"questions": "q.jsonl"},
        "eval": {"questions": "q.jsonl"},
        "merge": {"method": "mine"},
    }
    file.write_text(yaml.safe_dump(told), encoding="utf-8")
    opened = Run(load_recipe(file), tmp_path / "run", Silent(), mute)
    run_statistics(opened)
    assert load_statistics(opened)["width"].tolist() == [64.0]
