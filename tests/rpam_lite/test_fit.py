"""The fit on a tiny random pair, through the streaming engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar

from rpam_lite.errors import RpamError
from rpam_lite.fit.batches import question_shares
from rpam_lite.fit.joint import Fitted, fit_jointly, hessian_eigenvalues
from rpam_lite.fit.sequential import fit_sequentially
from rpam_lite.patterns.label import LabelledQuestion
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import load_questions
from tests.rpam_lite.engine import QUESTIONS, capture_pair, problem_of, stores_of

SETTINGS = Capture(top_k=16)


@pytest.fixture
def captured(pair: Path, tmp_path: Path) -> Path:
    return capture_pair(pair, tmp_path / "capture")


def alone(vector: torch.Tensor) -> torch.Tensor:
    return vector


def start_of(problem: Any) -> torch.Tensor:
    found: torch.Tensor = problem.grouping.start_values(problem.settings.start)
    return found


def run_fit(pair: Path, captured: Path, folder: Path, on_step: Callable[[str], None] = len, **fit: Any) -> Fitted:  # type: ignore[assignment]
    problem = problem_of(pair, captured, torch.float32, **{"steps": 6, "tolerance": 0, **fit})
    state = folder / "joint.pt"
    return fit_jointly(problem, start_of(problem), stores_of(problem, folder), alone, state, on_step)


def test_the_long_weight_moves_lambda_towards_long(pair: Path, captured: Path, tmp_path: Path) -> None:
    even = run_fit(pair, captured, tmp_path / "even", long_weight=1.0, steps=20, contrastive_weight=0.0)
    heavy = run_fit(pair, captured, tmp_path / "heavy", long_weight=5.0, steps=20, contrastive_weight=0.0)
    assert heavy.values.sum() > even.values.sum() + 0.3
    questions = load_questions(captured)
    shares = question_shares(questions, 5.0)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    torch.testing.assert_close(shares[questions.is_long], 5.0 * shares[~questions.is_long])


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_the_fit_lowers_the_loss_and_is_reproducible(
    pair: Path, captured: Path, tmp_path: Path, optimizer: str
) -> None:
    fitted = run_fit(pair, captured, tmp_path / "a", optimizer=optimizer)
    assert min(entry["loss"] for entry in fitted.curve) < fitted.curve[0]["loss"]
    assert ((fitted.values >= 0) & (fitted.values <= 1)).all()
    again = run_fit(pair, captured, tmp_path / "b", optimizer=optimizer)
    assert torch.equal(again.values, fitted.values)
    assert again.curve == fitted.curve


def test_the_fit_stops_when_the_loss_stops_falling(pair: Path, captured: Path, tmp_path: Path) -> None:
    fitted = run_fit(pair, captured, tmp_path, steps=200, tolerance=1e-2)
    assert fitted.stopped == "converged"
    assert len(fitted.curve) < 200


def test_questions_of_one_label_pull_to_that_parent(pair: Path, tmp_path: Path) -> None:
    for label, end in (("long", 1.0), ("short", 0.0)):
        own = [LabelledQuestion(q.key, 1, label, q.prompt_ids, q.response_ids) for q in QUESTIONS]  # type: ignore[arg-type]
        folder = capture_pair(pair, tmp_path / label, questions=own)
        fitted = run_fit(pair, folder, tmp_path / f"{label}-fit", steps=40)
        assert (fitted.values - end).abs().max() < 0.15, (label, fitted.values)


def test_adamerging_lowers_the_entropy_and_reads_neither_labels_nor_answers(pair: Path, tmp_path: Path) -> None:
    settings = {
        "preset": "adamerging",
        "alignment_weight": 0.0,
        "contrastive_weight": 0.0,
        "kl_form": "sequence",
        "steps": 20,
    }
    found = []
    for name, label, answer in (("one", "long", (60, 61)), ("other", "short", (70, 71))):
        own = [LabelledQuestion(q.key, 1, label, q.prompt_ids, answer) for q in QUESTIONS]  # type: ignore[arg-type]
        folder = capture_pair(pair, tmp_path / name, questions=own)
        found.append(run_fit(pair, folder, tmp_path / f"{name}-fit", **settings))
    entropies = [entry["entropy"] for entry in found[0].curve]
    assert min(entropies) < entropies[0] - 5e-4
    assert entropies == [entry["loss"] for entry in found[0].curve]
    torch.testing.assert_close(found[0].values, found[1].values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_an_interrupted_fit_ends_the_same(pair: Path, captured: Path, tmp_path: Path, optimizer: str) -> None:
    whole = run_fit(pair, captured, tmp_path / "whole", optimizer=optimizer)
    steps = 0

    def stop(note: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fit(pair, captured, tmp_path / "cut", stop, optimizer=optimizer)
    assert (tmp_path / "cut/joint.pt").exists()
    again = run_fit(pair, captured, tmp_path / "cut", optimizer=optimizer)
    assert torch.equal(again.values, whole.values)
    assert again.curve == whole.curve


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_fit_that_had_converged_stays_as_it_was(pair: Path, captured: Path, tmp_path: Path, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "steps": 200, "tolerance": 1e-2}
    fitted = run_fit(pair, captured, tmp_path, **settings)
    again = run_fit(pair, captured, tmp_path, **settings)
    assert fitted.stopped == again.stopped == "converged"
    assert torch.equal(again.values, fitted.values)
    assert again.curve == fitted.curve


def test_lambda_keeps_small_steps(pair: Path, captured: Path, tmp_path: Path) -> None:
    fitted = run_fit(pair, captured, tmp_path, steps=2, learning_rate=0.001, optimizer="adam")
    state = torch.load(tmp_path / "joint.pt", weights_only=True)
    assert fitted.values.dtype == torch.float32
    assert all(0.0005 < abs(v - 0.5) < 0.0025 for v in state["values"].tolist())


@pytest.mark.parametrize("granularity", ["layer", "matrix", "row"])
def test_the_sequential_fit_lowers_every_layers_error(
    pair: Path, captured: Path, tmp_path: Path, granularity: str
) -> None:
    problem = problem_of(pair, captured, torch.float32, granularity=granularity)
    values, report = fit_sequentially(
        problem, start_of(problem), stores_of(problem, tmp_path).upstream, alone, tmp_path / "layers.pt"
    )
    assert [row["layer"] for row in report] == [0, 1]
    assert all(row["after"] < row["before"] for row in report)
    assert all(row["smallest_eigenvalue"] > -1e-5 * row["largest_eigenvalue"] for row in report)  # of J'J
    assert ((values >= 0) & (values <= 1)).all()


def test_the_sequential_step_is_the_minimum_over_one_lambda(pair: Path, captured: Path, tmp_path: Path) -> None:
    """Against a plain search over lambda of the first layer, parents' states and all."""
    problem = problem_of(pair, captured, torch.float32, granularity="layer")
    values, report = fit_sequentially(problem, start_of(problem), stores_of(problem, tmp_path).upstream, alone, None)
    first = problem.grouping.start["layers.0"]

    def error(value: float) -> float:
        start = start_of(problem)
        start[first] = value
        _, rows = fit_sequentially(problem, start, stores_of(problem, tmp_path).upstream, alone, None)
        return rows[0]["before"]

    searched = minimize_scalar(error, bounds=(0, 1), method="bounded", options={"xatol": 0.01, "maxiter": 12}).x
    assert report[0]["after"] <= 1.001 * error(searched)
    assert abs(float(values[first]) - searched) < 0.05


def test_an_interrupted_sequential_fit_ends_the_same(pair: Path, captured: Path, tmp_path: Path) -> None:
    problem = problem_of(pair, captured, torch.float32)
    whole, report = fit_sequentially(problem, start_of(problem), stores_of(problem, tmp_path).upstream, alone, None)

    def stop(note: str) -> None:
        raise KeyboardInterrupt

    state = tmp_path / "layers.pt"
    with pytest.raises(KeyboardInterrupt):
        fit_sequentially(problem, start_of(problem), stores_of(problem, tmp_path).upstream, alone, state, stop)
    again = fit_sequentially(problem, start_of(problem), stores_of(problem, tmp_path).upstream, alone, state)
    assert torch.equal(again[0], whole)
    assert again[1] == report


def test_the_hessian_is_positive_where_the_fit_ended(pair: Path, captured: Path, tmp_path: Path) -> None:
    changes = {"kl_weight": 0.0, "contrastive_weight": 0.0, "lower": -1.0, "upper": 2.0}
    fitted = run_fit(pair, captured, tmp_path, steps=60, ridge=0.01, **changes)
    problem = problem_of(pair, captured, torch.float32, **changes)
    eigenvalues = hessian_eigenvalues(problem, fitted.values, stores_of(problem, tmp_path), alone)
    assert len(eigenvalues) == len(fitted.values)
    assert eigenvalues[-1] > 0
    assert eigenvalues == sorted(eigenvalues)
    stiff = problem_of(pair, captured, torch.float32, ridge=100.0, **changes)
    assert hessian_eigenvalues(stiff, fitted.values, stores_of(stiff, tmp_path), alone)[-1] > 2 * eigenvalues[-1]


def test_nan_in_a_parent_is_named(pair: Path, tmp_path: Path) -> None:
    file = pair / "short" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(RpamError, match=r"decoder layer 1 hold inf or NaN on calibration question \d"):
        capture_pair(pair, tmp_path / "capture")


def test_a_loss_that_is_not_finite_is_refused(pair: Path, captured: Path, tmp_path: Path) -> None:
    with pytest.raises(RpamError, match=r"The fit's loss is inf at step 1; choose another `fit.start`"):
        run_fit(pair, captured, tmp_path, alignment_weight=1e300)
