"""`fit.preset: release`: what it does otherwise than we do, each held against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.fit import objective
from rpam_lite.fit.elements import elements_file, load_elements
from rpam_lite.fit.release import fit_release, loss_terms, padded_prompts, single_label_batches
from rpam_lite.recipe import Release
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource
from tests.rpam_lite.engine import QUESTIONS
from tests.rpam_lite.models import layer_outputs, save_pair

PROMPTS = [torch.tensor(q.prompt_ids) for q in QUESTIONS]
IS_LONG = [q.label == "long" for q in QUESTIONS]
TOKENS, PAD = 12, 3


@pytest.fixture(scope="module")
def near_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pair(tmp_path_factory.mktemp("release"), "qwen2")


def released(pair: Path, folder: Path, **settings: Any) -> tuple[Skeleton, list[dict[str, float]]]:
    skeleton = Skeleton(pair / "short")
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    prompts = padded_prompts(PROMPTS, TOKENS, PAD)
    source, ends = WeightSource(long, short, skeleton), Ends(long, short, skeleton, [prompts])
    chosen = Release.model_validate({"prompt_tokens": TOKENS, "batch": 2, "epochs": 3} | settings)
    return skeleton, fit_release(skeleton, source, ends, prompts, IS_LONG, chosen, torch.float32, folder)


def states_of(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return layer_outputs(model, input_ids=ids)[0]


def parent(pair: Path, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float32).eval()


def test_prompts_are_padded_or_cut_to_one_length() -> None:
    rows = padded_prompts([torch.tensor([5, 6]), torch.tensor([5, 6, 7, 8])], 3, PAD)
    assert rows.tolist() == [[5, 6, PAD], [5, 6, 7]]


def test_batches_hold_one_label() -> None:
    assert single_label_batches([True, False, True, True], 2) == [[0, 2], [3], [1]]


def test_pads_count_in_the_release_and_not_in_ours() -> None:
    torch.manual_seed(1)
    a, b, c = (torch.randn(2, 5, 8) for _ in range(3))
    longer = [torch.cat([t, torch.randn(2, 3, 8)], 1) for t in (a, b, c)]
    pull, contrast = loss_terms(a, b, c, 0.1)
    pull_longer, contrast_longer = loss_terms(*longer, 0.1)
    assert pull_longer > pull + 1
    assert abs(contrast_longer - contrast) > 1e-3
    mask = torch.cat([torch.ones(2, 5), torch.zeros(2, 3)], 1)
    gap = torch.tensor(1.0)
    torch.testing.assert_close(
        objective.alignment(longer[0], longer[1], mask, gap), objective.alignment(a, b, torch.ones(2, 5), gap)
    )


def test_its_balance_moves_with_batch_and_length_and_ours_does_not() -> None:
    torch.manual_seed(1)
    a, b, c = (torch.randn(2, 5, 8) for _ in range(3))
    pull, _ = loss_terms(a, b, c, 0.1)
    torch.testing.assert_close(loss_terms(*(t.repeat(3, 2, 1) for t in (a, b, c)), 0.1)[0], 6 * pull)
    twice = [t.repeat(1, 2, 1) for t in (a, b)]
    torch.testing.assert_close(
        objective.alignment(*twice, torch.ones(2, 10), torch.tensor(1.0), "mean"),
        objective.alignment(a, b, torch.ones(2, 5), torch.tensor(1.0), "mean"),
    )


def test_its_contrastive_term_depends_on_the_batch() -> None:
    """mean_i -log( e^(c_i/tau) / ( e^(c_i/tau) + sum_j e^(d_j/tau) ) ), written out."""
    torch.manual_seed(1)
    a, b, c = (torch.randn(3, 5, 8) for _ in range(3))
    cosines = [torch.cosine_similarity(a.flatten(1), t.flatten(1)) / 0.1 for t in (b, c)]
    expected = torch.stack([-(x.exp() / (x.exp() + cosines[1].exp().sum())).log() for x in cosines[0]]).mean()
    together = loss_terms(a, b, c, 0.1)[1]
    torch.testing.assert_close(together, expected)
    alone = torch.stack([loss_terms(a[[i]], b[[i]], c[[i]], 0.1)[1] for i in range(3)]).mean()
    assert abs(together - alone) > 1e-2


def test_the_first_terms_are_those_of_the_release(near_pair: Path, tmp_path: Path) -> None:
    """Plain forward passes give the pull of layer 0 and of layer 1, and its negative on the positive stream."""
    _, report = released(near_pair, tmp_path, learning_rate=1e-12, epochs=1, omega=0.0)
    long, short = parent(near_pair, "long"), parent(near_pair, "short")
    merged = parent(near_pair, "short")
    with torch.no_grad():
        for tensor, other in zip(merged.parameters(), long.parameters(), strict=True):
            tensor.add_(0.5 * (other - tensor))
    prompts = padded_prompts(PROMPTS, TOKENS, PAD)
    pulls, contrasts = [0.0, 0.0], [0.0, 0.0]
    for batch in single_label_batches(IS_LONG, 2):
        selected, other = (long, short) if IS_LONG[batch[0]] else (short, long)
        middle, positive = states_of(merged, prompts[batch]), states_of(selected, prompts[batch])
        negative = states_of(other, prompts[batch])
        on_positive = torch.nn.Module.__call__(
            other.model.layers[1],
            positive[0],
            position_embeddings=other.model.rotary_emb(positive[0], torch.arange(TOKENS)[None]),
        )
        for layer, against in enumerate((negative[0], on_positive)):
            pull, contrast = loss_terms(middle[layer], positive[layer], against, 0.1)
            pulls[layer] += pull.item()
            contrasts[layer] += contrast.item()
        assert (on_positive - negative[1]).abs().max() > 1e-3
    for layer in range(2):
        assert report[layer]["pull_first"] == pytest.approx(pulls[layer], rel=1e-4)
        assert report[layer]["contrastive_first"] == pytest.approx(contrasts[layer], rel=1e-4)


def test_one_coefficient_a_weight_and_the_terms_fall(near_pair: Path, tmp_path: Path) -> None:
    skeleton, report = released(near_pair, tmp_path, learning_rate=0.02, epochs=20, omega=1.0)
    assert report[0]["pull_last"] < report[0]["pull_first"]
    lambdas, _ = load_elements(tmp_path, 0)
    shapes = {skeleton.checkpoint_name(0, t): s for t, s in skeleton.layer_tensors(0).items()}
    assert {name: tuple(v.shape) for name, v in lambdas.items()} == shapes
    assert all(v.dtype == torch.float32 for v in lambdas.values())
    assert len(lambdas["model.layers.0.mlp.up_proj.weight"].unique()) > 10


def test_small_steps_are_rounded_away_in_bfloat16(near_pair: Path, tmp_path: Path) -> None:
    """Towards Short (alpha up from 0.5) a step of 0.001 is lost, towards Long it is not."""
    released(near_pair, tmp_path, learning_rate=0.001, epochs=1, batch=6)
    lambdas = torch.cat([v.flatten() for v in load_elements(tmp_path, 0)[0].values()])
    assert lambdas.min() == 0.5
    assert lambdas.max() > 0.5


def test_an_interrupted_fit_ends_the_same(near_pair: Path, tmp_path: Path) -> None:
    _, whole = released(near_pair, tmp_path / "whole")
    released(near_pair, tmp_path / "cut")
    for layer in (1, 2):
        elements_file(tmp_path / "cut", layer).unlink()
    first = elements_file(tmp_path / "cut", 0).stat().st_mtime_ns
    _, again = released(near_pair, tmp_path / "cut")
    assert elements_file(tmp_path / "cut", 0).stat().st_mtime_ns == first
    assert again == whole
    for layer in range(3):
        files = [elements_file(tmp_path / run, layer).read_bytes() for run in ("whole", "cut")]
        assert files[0] == files[1]


def test_a_damaged_file_of_elements_is_named(tmp_path: Path) -> None:
    file = elements_file(tmp_path, 3)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    with pytest.raises(RpamError, match=r"layer-003.safetensors: is damaged .*delete it"):
        load_elements(tmp_path, 3)
