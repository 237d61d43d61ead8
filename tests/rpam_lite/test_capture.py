"""Capture on a tiny random pair, through the streaming engine; and what is captured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.errors import RpamError
from rpam_lite.fit.batches import micro_batches
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.patterns.label import LabelledQuestion
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import PARENTS, load_layer, load_questions, load_targets
from rpam_lite.streaming.calibration import calibration_set, choose_questions, kept_positions
from rpam_lite.streaming.capture import capture
from tests.rpam_lite.engine import MICRO_TOKENS, QUESTIONS, capture_pair, engine, problem_of, stores_of
from tests.rpam_lite.models import layer_outputs

SETTINGS = Capture(top_k=16)


@pytest.fixture
def captured(pair: Path, tmp_path: Path) -> Path:
    return capture_pair(pair, tmp_path / "capture")


@pytest.mark.parametrize("parent", PARENTS)
def test_captured_states_are_each_parents_own(pair: Path, captured: Path, parent: str) -> None:
    questions = load_questions(captured)
    model = AutoModelForCausalLM.from_pretrained(pair / parent, dtype=torch.float32)
    for q in range(len(questions)):
        with torch.no_grad():
            expected, _ = layer_outputs(model, input_ids=questions.token_ids[q][None])
        for layer, states in enumerate(expected):
            found = load_layer(captured, layer, questions)[PARENTS.index(parent)][q]
            torch.testing.assert_close(found, states[0, questions.positions[q]].bfloat16(), atol=1e-2, rtol=1e-2)


def test_the_gap_is_that_of_the_parents(captured: Path) -> None:
    questions = load_questions(captured)
    long, short, gap = load_layer(captured, 1, questions)
    squares = [(a.float() - b.float()).square().sum() for a, b in zip(long, short, strict=True)]
    torch.testing.assert_close(gap, torch.stack(squares).mean(), rtol=1e-2, atol=0)


def test_targets_are_the_selected_parents_distribution(pair: Path, captured: Path) -> None:
    questions = load_questions(captured)
    models = {p: AutoModelForCausalLM.from_pretrained(pair / p, dtype=torch.float32) for p in PARENTS}
    for q, (selected, other) in enumerate(zip(*load_targets(captured, questions), strict=True)):
        names = PARENTS if questions.is_long[q] else PARENTS[::-1]
        for parent, target, count in zip(
            names, (selected, other), (len(QUESTIONS[q].response_ids) + 1, 1), strict=True
        ):
            positions = questions.target_positions(q)[:count]
            with torch.no_grad():
                logprobs = models[parent](questions.token_ids[q][None]).logits[0].log_softmax(-1)[positions]
            top = logprobs.topk(16, dim=-1)
            torch.testing.assert_close(target.logprobs, top.values, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(target.logprobs, logprobs.gather(-1, target.ids), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(target.tail, 1 - top.values.exp().sum(-1), atol=1e-4, rtol=1e-4)
            assert len(target.ids) == count


def test_an_interrupted_capture_goes_on_and_ends_the_same(pair: Path, captured: Path, tmp_path: Path) -> None:
    chosen = calibration_set(QUESTIONS, SETTINGS)
    batches = micro_batches([len(t) for t in chosen.token_ids], MICRO_TOKENS)
    layers_run = []

    def run(stop_after: int | None) -> None:
        _, source, ends = engine(pair, chosen)
        done = 0

        def on_layer() -> None:
            nonlocal done
            done += 1
            layers_run.append(done)
            if done == stop_after:
                raise KeyboardInterrupt

        capture(source, ends, chosen, batches, SETTINGS.top_k, tmp_path / "cut", on_layer=on_layer)

    with pytest.raises(KeyboardInterrupt):
        run(1)
    modified = (tmp_path / "cut/layer-000.safetensors").stat().st_mtime_ns
    run(None)
    assert (tmp_path / "cut/layer-000.safetensors").stat().st_mtime_ns == modified
    names = sorted(f.name for f in captured.iterdir())
    assert sorted(f.name for f in (tmp_path / "cut").iterdir()) == names
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (captured / name).read_bytes(), name


def test_a_capture_that_wrote_its_last_file_is_not_done_again(
    pair: Path, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in what follows, the survey of the layers, loses nothing."""
    chosen = calibration_set(QUESTIONS, SETTINGS)
    _, source, ends = engine(pair, chosen)
    monkeypatch.setattr(source, "sweep", lambda layers: pytest.fail("a layer was loaded"))
    seen: list[None] = []
    kept = capture(source, ends, chosen, [], SETTINGS.top_k, captured, on_layer=lambda: seen.append(None))
    assert kept.top_k == SETTINGS.top_k
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["questions.safetensors", "layer-000.safetensors", "targets.safetensors"])
def test_a_damaged_file_of_the_capture_is_named(captured: Path, name: str) -> None:
    questions = load_questions(captured)
    (captured / name).write_bytes((captured / name).read_bytes()[:100])
    with pytest.raises(RpamError, match=rf"{name}: can't be read .*run `rpam capture` again"):
        (load_questions(captured), load_layer(captured, 0, questions), load_targets(captured, questions))


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
    assert kept(positions=["response"], response_stride=3) == [3, 6]


def test_choice_of_questions_is_balanced_and_seeded() -> None:
    chosen = choose_questions(QUESTIONS, 2, seed=1)
    assert sorted(q.label for q in chosen) == ["long", "long", "short", "short"]
    assert chosen == choose_questions(QUESTIONS, 2, seed=1)


def test_micro_batches_hold_every_question_once_within_the_tokens() -> None:
    lengths = [5, 30, 7, 12, 50, 6]
    groups = micro_batches(lengths, 30)
    assert sorted(q for group in groups for q in group) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(lengths[q] for q in g) <= 30 for g in groups)
    assert len(groups) < 6


def test_a_micro_batch_is_mostly_real_tokens() -> None:
    lengths = [100, 104, 108, 112, 200, 210]
    groups = micro_batches(lengths, 4096)
    assert groups == [[0, 1, 2, 3], [4, 5]]
    assert micro_batches([100, 100, 100, 150], 4096) == [[0, 1, 2], [3]]


def test_states_that_nothing_reads_are_not_kept(pair: Path, tmp_path: Path) -> None:
    without = calibration_set(QUESTIONS, SETTINGS, with_states=False)
    _, source, ends = engine(pair, without)
    batches = micro_batches([len(t) for t in without.token_ids], MICRO_TOKENS)
    capture(source, ends, without, batches, SETTINGS.top_k, tmp_path / "bare")
    questions = load_questions(tmp_path / "bare")
    long, short, gap = load_layer(tmp_path / "bare", 0, questions)
    assert [len(states) for states in (*long, *short)] == [0] * (2 * len(QUESTIONS))
    assert gap == 0
    # Of the same targets the default objective gives the same gradient.
    gradients = []
    for captured in (tmp_path / "bare", capture_pair(pair, tmp_path / "whole", SETTINGS)):
        problem = problem_of(pair, captured, torch.float32, alignment_weight=0.0, contrastive_weight=0.0, kl_weight=1.0)
        values = problem.grouping.start_values(0.5)
        gradients.append(
            joint_gradient(problem, values, stores_of(problem, tmp_path, "disk"), lambda vector: vector)[1]
        )
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0
