"""A family's weights: what the other parent loses on each side puts points and nats in one unit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.fit.shares import answer_shares, loss_of_the_other_parent, priced_shares
from rpam_lite.recipe import Capture
from tests.rpam_lite.engine import MICRO_TOKENS, capture_pair, problem_of, stores_of
from tests.rpam_lite.models import save_pair

VOCABULARY = 10**6  # more than there are: every token's probability is kept


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pair = save_pair(tmp_path_factory.mktemp("pair"), "qwen2")
    return pair, capture_pair(pair, pair / "capture", Capture(top_k=VOCABULARY))


def test_it_is_the_divergence_of_the_parents_answers(captured: tuple[Path, Path], tmp_path: Path) -> None:
    pair, folder = captured
    only_kl = {"kl_form": "sequence", "alignment_weight": 0.0, "contrastive_weight": 0.0}
    problem = problem_of(pair, folder, torch.float32, mine=[], **only_kl)
    stores = partial(stores_of, folder=tmp_path)
    halves = [
        loss_of_the_other_parent(problem, own, MICRO_TOKENS, stores, lambda vector: vector)
        for own in ([0, 1, 2], [3, 4, 5])
    ]
    found = loss_of_the_other_parent(problem, range(6), MICRO_TOKENS, stores, lambda vector: vector)

    models = [AutoModelForCausalLM.from_pretrained(pair / p, dtype=torch.float32).eval() for p in ("short", "long")]
    questions = problem.questions
    expected: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for q, (ids, first) in enumerate(zip(questions.token_ids, questions.prompt_lengths, strict=True)):
        is_long = bool(questions.is_long[q])
        with torch.no_grad():
            other, selected = (
                models[which](ids[None]).logits[0, first - 1 :].log_softmax(-1) for which in (not is_long, is_long)
            )
        expected[is_long].append((selected.exp() * (selected - other)).sum())
    for is_long, losses in expected.items():
        mean = torch.stack(losses).mean()
        assert found[questions.is_long == is_long] == pytest.approx([mean.item()] * len(losses), rel=1e-3)
        side = questions.is_long == is_long
        assert sum(half[side][0] for half in halves) == pytest.approx(
            mean.item(), rel=1e-3
        )  # as several processes would


def test_a_side_weighs_its_regrets_by_what_the_other_parent_loses_there() -> None:
    weights, is_long = torch.tensor([30.0, 10.0, 4.0, 0.0]), torch.tensor([True, True, False, False])
    shares = priced_shares(weights, is_long, 1.0, torch.tensor([100.0, 100.0, 5.0, 5.0]))
    assert shares.sum() == pytest.approx(1)
    assert (shares / shares[0]).tolist() == pytest.approx([1, 1 / 3, (4 / 5) / (30 / 100), 0])
    doubled = priced_shares(weights, is_long, 2.0, torch.tensor([100.0, 100.0, 5.0, 5.0]))
    assert (doubled / doubled[0]).tolist() == pytest.approx([1, 1 / 3, (4 / 5) / (60 / 100), 0])


def test_longs_answers_together_weigh_three_times_shorts_however_many_there_are() -> None:
    rights, is_long = torch.tensor([1.0, 0.5, 0.5, 0.25]), torch.tensor([True, True, True, False])
    assert answer_shares(rights, is_long, 1.0).tolist() == pytest.approx([0.375, 0.1875, 0.1875, 0.25])
    assert answer_shares(rights, is_long, 1 / 3)[is_long].sum() == pytest.approx(0.5)
    assert answer_shares(rights[:3], is_long[:3], 1.0).tolist() == pytest.approx([0.5, 0.25, 0.25])
