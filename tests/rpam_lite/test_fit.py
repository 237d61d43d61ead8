"""Capture and joint fit on a tiny random pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rpam_lite.errors import RpamError
from rpam_lite.fit.joint import MergedModel, batches_of, fit, load_calibration, make_batch, question_weights, terms
from rpam_lite.patterns.label import LabelledQuestion
from rpam_lite.recipe import Capture, Fit
from rpam_lite.streaming.activations import CalibrationSet, load_layer, load_questions, load_targets
from rpam_lite.streaming.capture import calibration_set, capture, choose_questions, kept_positions

QUESTIONS = [
    LabelledQuestion(str(i), 1, "long" if i % 2 else "short", tuple(range(20, 25 + i)), tuple(range(60, 64 + 2 * i)))
    for i in range(6)
]
SETTINGS = Capture(top_k=512)


@pytest.fixture
def captured(pair: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "capture"
    capture({"long": pair / "long", "short": pair / "short"}, calibration_set(QUESTIONS, SETTINGS), 512, folder)
    return folder


def run_fit(pair: Path, captured: Path, state: Path, **changes: object) -> tuple[dict[str, float], list[float]]:
    settings = Fit.model_validate({"epochs": 4, "batch_questions": 3, **changes})
    coefficients, curve = fit(pair / "long", pair / "short", captured, settings, 1, state)
    return coefficients.values, [epoch["loss"] for epoch in curve]


@pytest.mark.parametrize("parent", ["long", "short"])
def test_captured_states_are_each_parents_own(pair: Path, captured: Path, parent: str) -> None:
    questions = load_questions(captured)
    model = AutoModelForCausalLM.from_pretrained(pair / parent, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
    for q in range(len(questions)):
        seen.clear()
        with torch.no_grad():
            model(questions.token_ids[q][None])
        for layer, expected in enumerate(seen):
            found = load_layer(captured, parent, layer, questions)[q]
            torch.testing.assert_close(found, expected[0, questions.positions[q]].bfloat16(), atol=1e-2, rtol=1e-2)


def test_targets_are_the_selected_parents_distribution(pair: Path, captured: Path) -> None:
    questions = load_questions(captured)
    for q, target in enumerate(load_targets(captured, questions)):
        parent = "long" if questions.is_long[q] else "short"
        model = AutoModelForCausalLM.from_pretrained(pair / parent, dtype=torch.float32)
        with torch.no_grad():
            logprobs = model(questions.token_ids[q][None]).logits[0].log_softmax(-1)[questions.target_positions(q)]
        torch.testing.assert_close(target.logprobs, logprobs.gather(-1, target.ids), atol=1e-4, rtol=1e-4)
        assert len(target.ids) == len(QUESTIONS[q].response_ids) + 1


def test_both_parents_see_the_same_tokens_whatever_the_label() -> None:
    flipped = [LabelledQuestion(q.key, 1, "short", q.prompt_ids, q.response_ids) for q in QUESTIONS]
    one, two = calibration_set(QUESTIONS, SETTINGS), calibration_set(flipped, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(one.token_ids, two.token_ids, strict=True))


def test_kept_positions() -> None:
    def kept(**settings: object) -> list[int]:
        return kept_positions(3, 4, Capture.model_validate(settings)).tolist()

    assert kept() == [1, 2, 3, 4, 5, 6]
    assert kept(skip_first_token=False, positions=["prompt"]) == [0, 1, 2]
    assert kept(positions=["last_prompt_token"]) == [2]
    assert kept(positions=["response"], response_tokens=2) == [3, 4]


def test_choice_of_questions_is_balanced_and_seeded() -> None:
    chosen = choose_questions(QUESTIONS, 2, seed=1)
    assert sorted(q.label for q in chosen) == ["long", "long", "short", "short"]
    assert chosen == choose_questions(QUESTIONS, 2, seed=1)


@pytest.mark.parametrize("granularity", ["layer", "matrix"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_merged_model_is_the_merge(pair: Path, captured: Path, granularity: str, value: float) -> None:
    merged = MergedModel(pair / "long", pair / "short", granularity)  # type: ignore[arg-type]
    values = torch.full((len(merged.groups),), value)
    ids = load_questions(captured).token_ids[2][None]
    _, final, head = merged.run(values, ids)
    long, short = (AutoModelForCausalLM.from_pretrained(pair / p, dtype=torch.float32) for p in ("long", "short"))
    with torch.no_grad():
        for a, b in zip(short.parameters(), long.parameters(), strict=True):
            a.add_(value * (b - a))
        torch.testing.assert_close(final @ head.T, short(ids).logits, atol=1e-4, rtol=1e-4)


def test_gradients_equal_finite_differences(pair: Path, captured: Path) -> None:
    merged = MergedModel(pair / "long", pair / "short", "layer")
    data = load_calibration(captured, 2)
    settings = Fit()
    batch = make_batch(data, [0, 1, 4], torch.tensor([0.2, 0.5, 0.3]))

    def loss(values: torch.Tensor) -> torch.Tensor:
        return terms(merged, values, batch, data, settings).sum()

    values = torch.full((len(merged.groups),), 0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(values), values)
    for i in range(len(values)):
        step = torch.zeros_like(values)
        step[i] = 1e-2
        with torch.no_grad():
            slope = (loss(values + step) - loss(values - step)) / 2e-2
        torch.testing.assert_close(gradient[i], slope, atol=2e-2, rtol=5e-2)


def test_terms_do_not_depend_on_the_batch_mates(pair: Path, captured: Path) -> None:
    merged = MergedModel(pair / "long", pair / "short", "layer")
    data = load_calibration(captured, 2)
    values = torch.full((len(merged.groups),), 0.4)
    shares = torch.tensor([0.5, 0.25])
    alone = [terms(merged, values, make_batch(data, [q], shares[[i]]), data, Fit()) for i, q in enumerate((0, 5))]
    together = terms(merged, values, make_batch(data, [0, 5], shares), data, Fit())
    torch.testing.assert_close(together, alone[0] + alone[1], atol=1e-5, rtol=1e-4)


def test_the_long_weight_moves_lambda_towards_long(pair: Path, captured: Path, tmp_path: Path) -> None:
    even, _ = run_fit(pair, captured, tmp_path / "even.pt", long_weight=1.0, epochs=10)
    heavy, _ = run_fit(pair, captured, tmp_path / "heavy.pt", long_weight=5.0, epochs=10)
    assert sum(heavy.values()) > sum(even.values()) + 0.5
    questions = load_questions(captured)
    weights = question_weights(questions, 5.0)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights[questions.is_long], 5.0 * weights[~questions.is_long])


def test_the_fit_lowers_the_loss_and_is_reproducible(pair: Path, captured: Path, tmp_path: Path) -> None:
    values, losses = run_fit(pair, captured, tmp_path / "a.pt")
    assert losses[-1] < losses[0]
    assert all(0 <= v <= 1 for v in values.values())
    assert run_fit(pair, captured, tmp_path / "b.pt") == (values, losses)


def test_questions_of_one_label_pull_to_that_parent(pair: Path, tmp_path: Path) -> None:
    for label, end in (("long", 1.0), ("short", 0.0)):
        own = [LabelledQuestion(q.key, 1, label, q.prompt_ids, q.response_ids) for q in QUESTIONS]  # type: ignore[arg-type]
        folder = tmp_path / label
        parents = {"long": pair / "long", "short": pair / "short"}
        capture(parents, calibration_set(own, SETTINGS), 512, folder)
        values, _ = run_fit(pair, folder, tmp_path / f"{label}.pt", epochs=30, learning_rate=0.1)
        assert all(abs(v - end) < 0.15 for v in values.values()), (label, values)


def test_an_interrupted_fit_ends_the_same(pair: Path, captured: Path, tmp_path: Path) -> None:
    whole = run_fit(pair, captured, tmp_path / "whole.pt")
    steps = 0

    def stop(note: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt

    settings = Fit(epochs=4, batch_questions=3)
    with pytest.raises(KeyboardInterrupt):
        fit(pair / "long", pair / "short", captured, settings, 1, tmp_path / "cut.pt", stop)
    assert (tmp_path / "cut.pt").exists()
    assert run_fit(pair, captured, tmp_path / "cut.pt") == whole


def test_lambda_keeps_small_steps(pair: Path, captured: Path, tmp_path: Path) -> None:
    values, _ = run_fit(pair, captured, tmp_path / "s.pt", epochs=1, batch_questions=6, learning_rate=0.001)
    assert all(0.0005 < abs(v - 0.5) < 0.0015 for v in values.values())


def test_nan_in_a_parent_is_named(pair: Path, tmp_path: Path) -> None:
    file = pair / "short" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    questions = calibration_set(QUESTIONS, SETTINGS)
    with pytest.raises(RpamError, match="decoder layer 1 hold inf or NaN on calibration question 0"):
        capture({"long": pair / "long", "short": pair / "short"}, questions, 8, tmp_path / "capture")


def test_batches_hold_every_question_once(captured: Path) -> None:
    questions: CalibrationSet = load_questions(captured)
    batches = batches_of(questions, 4, "x")
    assert sorted(q for batch in batches for q in batch) == list(range(6))
    assert batches == batches_of(questions, 4, "x")
