"""The objective: each of the corrections that its terms promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpam_lite.fit import objective


def states(seed: int, questions: int = 3, positions: int = 5, hidden: int = 8) -> torch.Tensor:
    return torch.randn(questions, positions, hidden, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])


def test_alignment_is_0_at_the_selected_parent_and_1_at_the_other() -> None:
    selected, other = states(1), states(2)
    gap = objective.squared_distance(selected, other, MASK).mean()
    assert objective.alignment(selected, selected, MASK, gap).abs().max() == 0
    torch.testing.assert_close(objective.alignment(other, selected, MASK, gap).mean(), torch.tensor(1.0))


@given(st.floats(0, 1))
def test_alignment_grows_with_the_square_of_the_distance(share: float) -> None:
    selected, other = states(1), states(2)
    gap = objective.squared_distance(selected, other, MASK).mean()
    between = selected + share * (other - selected)
    found = objective.alignment(between, selected, MASK, gap).mean()
    torch.testing.assert_close(found, torch.tensor(share**2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("extra", [1, 7])
def test_more_padding_changes_nothing(extra: int) -> None:
    a, b, c = states(1), states(2), states(3)
    gap = objective.squared_distance(b, c, MASK).mean()

    def longer(t: torch.Tensor, filler: float) -> torch.Tensor:
        return torch.cat([t, torch.full((3, extra, *t.shape[2:]), filler)], dim=1)

    mask = longer(MASK, 0.0)
    padded = [longer(t, 1e3) for t in (a, b, c)]
    torch.testing.assert_close(
        objective.alignment(padded[0], padded[1], mask, gap), objective.alignment(a, b, MASK, gap)
    )
    torch.testing.assert_close(objective.contrastive(*padded, mask, 0.1), objective.contrastive(a, b, c, MASK, 0.1))


def test_forms_of_alignment() -> None:
    merged, selected = states(1), states(2)
    gap = torch.tensor(7.0)
    raw = objective.alignment(merged, selected, MASK, gap, "raw")
    torch.testing.assert_close(raw, objective.squared_distance(merged, selected, MASK))
    mean = objective.alignment(merged, selected, MASK, gap, "mean")
    torch.testing.assert_close(mean, raw / (8 * MASK.sum(-1)))
    assert objective.alignment(3 * selected, selected, MASK, gap, "cosine").abs().max() < 1e-6
    torch.testing.assert_close(
        objective.alignment(-selected, selected, MASK, gap, "cosine"), torch.full((3,), 2.0), atol=1e-6, rtol=1e-6
    )


def test_where_both_parents_are_the_same_there_is_nothing_to_align() -> None:
    found = objective.alignment(states(1), states(2), MASK, torch.tensor(0.0), "gap")
    assert (found == 0).all()


def test_regularizers() -> None:
    values = torch.tensor([0.0, 1.0, 0.5, 0.2])
    torch.testing.assert_close(objective.ridge(values), values.var(correction=0))
    neighbours = torch.tensor([[0, 1], [1, 2]])
    torch.testing.assert_close(objective.roughness(values, neighbours), torch.tensor((1.0 + 0.25) / 2))
    assert objective.roughness(values, torch.empty(2, 0, dtype=torch.int64)) == 0


def test_contrastive_prefers_the_selected_parent() -> None:
    selected, other = states(1), states(2)
    near = objective.contrastive(selected, selected, other, MASK, 0.1)
    far = objective.contrastive(other, selected, other, MASK, 0.1)
    assert (near < far).all()
    middle = objective.contrastive(states(3), selected, selected, MASK, 0.1)
    torch.testing.assert_close(middle, torch.full((3,), 2.0).log())


def test_a_question_does_not_depend_on_its_batch() -> None:
    a, b, c = states(1), states(2), states(3)
    together = objective.contrastive(a, b, c, MASK, 0.1)
    alone = torch.cat([objective.contrastive(a[[i]], b[[i]], c[[i]], MASK[[i]], 0.1) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_kl_with_all_tokens_kept_is_the_exact_kl() -> None:
    target, merged = states(1)[0], states(2)[0]
    log_p, log_q = target.log_softmax(-1), merged.log_softmax(-1)
    top = log_p.topk(8, dim=-1)
    found = objective.kl_to_targets(log_q.gather(-1, top.indices), top.values, torch.zeros(5))
    torch.testing.assert_close(found, (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-5, rtol=1e-4)


@given(st.integers(1, 7))
def test_kl_of_top_k_is_a_lower_bound_and_0_at_the_target(k: int) -> None:
    target, merged = states(1)[0], states(2)[0]
    log_p, log_q = target.log_softmax(-1), merged.log_softmax(-1)
    top = log_p.topk(k, dim=-1)
    tail = 1 - top.values.exp().sum(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    found = objective.kl_to_targets(log_q.gather(-1, top.indices), top.values, tail)
    assert (found <= exact + 1e-5).all()
    assert objective.kl_to_targets(log_p.gather(-1, top.indices), top.values, tail).abs().max() < 1e-5


def test_sum_by_question() -> None:
    values, question = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2])
    assert objective.sum_by_question(values, question, 3).tolist() == [4.0, 0.0, 10.0]


@given(st.integers(1, 300), st.floats(0, 1))
def test_position_weights_sum_to_one_and_the_first_has_its_share(positions: int, share: float) -> None:
    weights = objective.position_weights(positions, "mean", share)
    assert abs(float(weights.sum()) - 1) < 1e-9
    if positions > 1 and share > 0:
        assert float(weights[0]) == share
    assert objective.position_weights(4, "mean").tolist() == [0.25] * 4


def test_as_a_sequence_every_position_counts_once() -> None:
    assert objective.position_weights(4, "sequence").tolist() == [1, 1, 1, 1]
    assert objective.position_weights(4, "sequence", window=2).tolist() == [1, 1, 0, 0]
    assert objective.position_weights(4, "execution").tolist() == [0, 1, 1, 1]
    assert objective.position_weights(4, "execution", window=2).tolist() == [0, 1, 0, 0]
    assert objective.position_weights(4, "mean", 0.5, window=3).tolist() == [0.5, 0.25, 0.25, 0]


def test_the_contrast_is_log_two_in_the_middle_and_falls_towards_the_selected_parent() -> None:
    near, far = torch.tensor([0.1]), torch.tensor([3.0])
    assert objective.output_contrast(near, near, 1.0).item() == pytest.approx(math.log(2))
    assert objective.output_contrast(near, far, 1.0) < objective.output_contrast(near, far, 5.0) < math.log(2)
