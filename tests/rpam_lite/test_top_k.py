"""How many log-probabilities are kept: against the KL divergence over the whole vocabulary."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.fit.objective import kl_to_targets
from rpam_lite.fit.setup import Planned, largest_top_k, most_top_k_as_begun
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import load_questions, stored_top_k
from rpam_lite.streaming.choice import choose, fits
from rpam_lite.streaming.plan import Budget, WorkSize, model_size, plan_for
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.top_k import MOST_TOP_K, WAY, powers_of_two
from tests.rpam_lite.engine import capture_pair
from tests.rpam_lite.models import layer_outputs, save_pair


def whole_distributions(pair: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The selected and the other parent's log-probabilities at all target positions [positions, vocabulary]."""
    models = {p: AutoModelForCausalLM.from_pretrained(pair / p, dtype=torch.float32) for p in ("long", "short")}
    questions = load_questions(folder)
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for q, ids in enumerate(questions.token_ids):
        order = ("long", "short") if questions.is_long[q] else ("short", "long")
        for kept, parent in zip(rows, order, strict=True):
            with torch.no_grad():
                _, logits = layer_outputs(models[parent], input_ids=ids[None])
            kept.append(logits[0, questions.target_positions(q)].log_softmax(-1))
    return torch.cat(rows[0]), torch.cat(rows[1])


def lost(p: torch.Tensor, q: torch.Tensor, k: int) -> float:
    """Share of the divergence that the fit's own term does not see with the top k, where on the way it is largest."""
    top, shares = p.topk(k, dim=-1), []
    for t in WAY:
        merged = ((1 - t) * p + t * q).log_softmax(-1)
        exact = (p.exp() * (p - merged)).sum(-1)
        tail = (1 - top.values.exp().sum(-1)).clamp_min(0)
        found = kl_to_targets(merged.gather(-1, top.indices), top.values, tail)
        shares.append(1 - float(found.sum() / exact.sum()))
    return max(shares)


def sharp_pair(folder: Path, sharpness: float) -> Path:
    """A pair whose logits are so many times larger: below 1 the distributions are flat, above it peaked."""
    pair = save_pair(folder, "qwen2")
    for parent in ("long", "short"):
        model = AutoModelForCausalLM.from_pretrained(pair / parent, dtype=torch.float32)
        model.model.norm.weight.data.mul_(sharpness)
        shutil.rmtree(pair / parent)
        model.save_pretrained(pair / parent)
    return pair


@pytest.mark.parametrize("sharpness", [1.0, 5.0, 20.0])
def test_it_is_the_least_power_of_two_that_loses_less_than_one_per_cent(sharpness: float, tmp_path: Path) -> None:
    pair = sharp_pair(tmp_path, sharpness)
    folder = capture_pair(pair, tmp_path / "capture", Capture(top_k="auto"))
    told = json.loads((folder / "top_k.json").read_text())
    p, q = whole_distributions(pair, folder)
    shares = {k: lost(p, q, k) for k in powers_of_two(97)}
    assert told["top_k"] == next(k for k, share in shares.items() if share < 0.01) == stored_top_k(folder)
    assert told["lost"] == pytest.approx(shares[told["top_k"]], abs=2e-4)
    assert told["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert told["positions"] == len(p)
    assert told["setting"] == "auto"


def test_a_fixed_number_is_kept_and_its_loss_told(pair: Path, tmp_path: Path) -> None:
    folder = capture_pair(pair, tmp_path / "capture", Capture(top_k=3))
    told = json.loads((folder / "top_k.json").read_text())
    assert told["top_k"] == told["setting"] == stored_top_k(folder) == 3
    assert told["lost"] == pytest.approx(lost(*whole_distributions(pair, folder), 3), abs=1e-3)
    assert told["lost"] > 0.01


def test_a_flat_distribution_needs_more_than_a_peaked_one(tmp_path: Path) -> None:
    found = {}
    for sharpness in (0.3, 1.0, 20.0):
        pair = sharp_pair(tmp_path / str(sharpness), sharpness)
        found[sharpness] = stored_top_k(capture_pair(pair, pair / "capture", Capture(top_k="auto")))
    assert found[0.3] >= found[1.0] > found[20.0]


def test_equal_parents_need_one(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, "llama", spread=0.0)
    folder = capture_pair(pair, tmp_path / "capture", Capture(top_k="auto"))
    assert stored_top_k(folder) == 1


def test_candidates() -> None:
    assert powers_of_two(1) == [1]
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(97) == [1, 2, 4, 8, 16, 32, 64, 97]


def test_auto_takes_no_more_than_the_budget_holds(tmp_path: Path) -> None:
    skeleton = Skeleton(save_pair(tmp_path, "llama") / "short")
    model, much = model_size(skeleton), 1 << 50
    work = WorkSize(tokens=4000, longest=100, kept=4000, targets=4000, distinct=97, top_k=64)
    roomy = choose(model, work, Budget(None, much, much))
    long, short = CheckpointSource(tmp_path / "long"), CheckpointSource(tmp_path / "short")

    def planned(host: int) -> Planned:
        return Planned(long, short, skeleton, model, work, Budget(None, host, much), roomy)

    assert largest_top_k(planned(much)) == MOST_TOP_K
    assert largest_top_k(planned(roomy.total("host"))) == 64
    between = plan_for(roomy.way, model, replace(work, top_k=256), on_cpu=True)
    assert largest_top_k(planned(between.total("host"))) == 256
    assert fits(between, Budget(None, between.total("host"), much))
    # An interrupted capture keeps to what it began with.
    assert most_top_k_as_begun(planned(between.total("host")), tmp_path / "scratch") == 256
    assert most_top_k_as_begun(planned(much), tmp_path / "scratch") == 256


@pytest.mark.parametrize("value", [0, "all", -1])
def test_other_settings_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="top_k"):
        Capture.model_validate({"top_k": value})
