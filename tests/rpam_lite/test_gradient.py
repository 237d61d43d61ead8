"""The streamed gradient equals full back-propagation through the whole merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.arithmetic import broadcast
from rpam_lite.errors import RpamError
from rpam_lite.fit.batches import LayerTargets, MicroBatch
from rpam_lite.fit.gradient import joint_gradient, layer_terms
from rpam_lite.fit.problem import Problem, weighted_terms
from rpam_lite.streaming.activations import Targets, load_targets
from tests.rpam_lite.engine import capture_pair, problem_of, stores_of
from tests.rpam_lite.models import layer_outputs, save_pair

PAIRS = ("qwen2", "llama", "granite")


@pytest.fixture(scope="module", params=PAIRS)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pair = save_pair(tmp_path_factory.mktemp(request.param), request.param)
    return pair, capture_pair(pair, pair / "capture")


def no_reduction(vector: torch.Tensor) -> torch.Tensor:
    return vector


def start(problem: Problem) -> torch.Tensor:
    """Lambda somewhere inside, different everywhere."""
    generator = torch.Generator().manual_seed(3)
    return 0.2 + 0.6 * torch.rand(len(problem.grouping), generator=generator, dtype=problem.dtype)


def by_autograd(pair: Path, problem: Problem, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same terms and gradient with both parents and the merge resident, one graph for everything."""
    long, short = (
        AutoModelForCausalLM.from_pretrained(pair / p, dtype=problem.dtype).eval() for p in ("long", "short")
    )
    values = values.clone().requires_grad_()
    s, d = dict(short.named_parameters()), dict(long.named_parameters())
    weights = {
        name: s[name].detach()
        + broadcast(problem.grouping.of(values, name), s[name].ndim) * (d[name] - s[name]).detach()
        for name in s
    }
    terms = torch.zeros(6, dtype=problem.dtype)
    # The same padded batches: the norms' fp32 inside would make other shapes differ by 1e-8.
    for batch in problem.batches:
        with torch.nn.utils.stateless._reparametrize_module(short, weights, tie_weights=True):  # type: ignore[attr-defined]
            outputs, logits = layer_outputs(short, input_ids=batch.ids)
        for layer, states in enumerate(outputs):
            targets = LayerTargets(problem.captured, problem.questions, layer)
            selected, other = targets.of(batch, states.device, problem.dtype)
            kept = torch.stack([row[at] for row, at in zip(states, batch.positions, strict=True)])
            own = layer_terms(kept, selected, other, targets.mean_gap, batch, problem.settings)
            terms = terms + torch.cat([own, own.new_zeros(4)]) / len(outputs)
        everything = logits.log_softmax(-1)
        for row, (q, share) in enumerate(zip(batch.questions, batch.shares, strict=True)):
            own_terms = outputs_of_question(everything[row], problem, q, batch)
            terms = terms + torch.cat([terms.new_zeros(2), share * own_terms])
    loss = (weighted_terms(problem).to(terms) * terms).sum()
    return terms.detach(), torch.autograd.grad(loss, values)[0]


def outputs_of_question(logprobs: torch.Tensor, problem: Problem, q: int, batch: MicroBatch) -> torch.Tensor:
    """KL, output contrast, likelihood and entropy of one question, from its whole rows of log-probabilities."""
    settings, questions = problem.settings, problem.questions
    selected, other = (targets[q] for targets in load_targets(problem.captured, questions))
    first = questions.prompt_lengths[q] - 1
    ids = questions.token_ids[q]

    def divergence(at: int, targets: Targets, row: int) -> torch.Tensor:
        p = targets.logprobs[row].to(logprobs).exp()
        m = logprobs[at, targets.ids[row]]
        tail, m_tail = targets.tail[row].to(logprobs).clamp_min(1e-9), (1 - m.exp().sum()).clamp_min(1e-9)
        return (p * (p.log() - m)).sum() + targets.tail[row].to(logprobs) * (tail.log() - m_tail.log())

    count = len(ids) - first
    window = min(settings.kl_tokens or count, count)
    own = settings.decision_share
    weights = {
        "sequence": [1.0] * window,
        "execution": [0.0] + [1.0] * (window - 1),
        "mean": [own] + [(1 - own) / max(1, window - 1)] * (window - 1),
    }[settings.form]
    kl = sum(w * divergence(first + i, selected, i) for i, w in enumerate(weights))
    kl = torch.log(1 + kl) if settings.form == "execution" else kl
    to_selected, to_other = divergence(first, selected, 0), divergence(first, other, 0)
    tau = settings.output_temperature
    pulled, pushed = (-to_selected / tau).exp(), (-to_other / tau).exp()
    contrast = -(pulled / (pulled + pushed)).log()
    likelihood = sum(
        -w * logprobs[first + i, ids[first + i + 1]] for i, w in enumerate(weights[: len(ids) - first - 1])
    )
    entropy = sum(w * -(logprobs[first + i].exp() * logprobs[first + i]).sum() for i, w in enumerate(weights))
    return torch.stack([torch.as_tensor(term) for term in (kl, contrast, likelihood, entropy)])


@pytest.mark.parametrize("granularity", ["scalar", "layer", "block", "matrix", "row"])
def test_every_granularity_in_fp64(captured: tuple[Path, Path], tmp_path: Path, granularity: str) -> None:
    pair, folder = captured
    problem = problem_of(pair, folder, torch.float64, granularity=granularity)
    assert_equal(pair, problem, tmp_path, 1e-10)


def test_fields_of_low_rank_in_fp64(captured: tuple[Path, Path], tmp_path: Path) -> None:
    """With a box that cuts some lambdas off."""
    pair, folder = captured
    problem = problem_of(pair, folder, torch.float64, granularity="low_rank", rank=3, lower=0.3, upper=1.3)
    name = problem.skeleton.checkpoint_name(1, next(n for n in problem.skeleton.layer_tensors(1) if "mlp" in n))
    lambdas = problem.grouping.of(start(problem), name)
    assert 0.1 < float(((lambdas > 0.3) & (lambdas < 1.3)).double().mean()) < 0.9
    assert_equal(pair, problem, tmp_path, 1e-10)


@pytest.mark.parametrize("alignment", ["gap", "mean", "raw", "cosine"])
@pytest.mark.parametrize("contrastive_weight", [0.0, 0.7])
def test_every_loss_in_fp64(
    captured: tuple[Path, Path], tmp_path: Path, alignment: str, contrastive_weight: float
) -> None:
    pair, folder = captured
    settings: dict[str, Any] = {"alignment": alignment, "contrastive_weight": contrastive_weight, "long_weight": 3.0}
    assert_equal(pair, problem_of(pair, folder, torch.float64, **settings), tmp_path, 1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_contrast_weight": 0.4, "output_temperature": 0.5},
        {"likelihood_weight": 0.6, "kl_weight": 0.0},
        {"kl_form": "mean", "decision_share": 0.3},
        {"kl_form": "execution"},
        {"kl_form": "execution", "likelihood_weight": 0.6, "entropy_weight": 0.3},
        {"output_contrast_weight": 0.4, "likelihood_weight": 0.6, "kl_tokens": 3, "alignment_weight": 0.0},
        {"entropy_weight": 0.8},
        {"preset": "adamerging", "alignment_weight": 0.0, "contrastive_weight": 0.0, "kl_form": "sequence"},
    ],
)
def test_every_output_term_in_fp64(captured: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    pair, folder = captured
    assert_equal(pair, problem_of(pair, folder, torch.float64, **changes), tmp_path, 1e-10)


@pytest.mark.parametrize("changes", [{}, {"kl_weight": 0.0}, {"alignment_weight": 0.0, "contrastive_weight": 0.0}])
def test_in_fp32(captured: tuple[Path, Path], tmp_path: Path, changes: dict[str, float]) -> None:
    pair, folder = captured
    assert_equal(pair, problem_of(pair, folder, torch.float32, granularity="matrix", **changes), tmp_path, 1e-4)


def test_on_disk(captured: tuple[Path, Path], tmp_path: Path) -> None:
    pair, folder = captured
    problem = problem_of(pair, folder, torch.float64)
    values = start(problem)
    expected = joint_gradient(problem, values, stores_of(problem, tmp_path), no_reduction)
    found = joint_gradient(problem, values, stores_of(problem, tmp_path, "disk"), no_reduction)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def assert_equal(pair: Path, problem: Problem, folder: Path, tolerance: float) -> None:
    values = start(problem)
    terms, gradient = joint_gradient(problem, values, stores_of(problem, folder), no_reduction)
    expected_terms, expected = by_autograd(pair, problem, values)
    assert expected.abs().max() > 1e-5
    active = weighted_terms(problem) != 0
    torch.testing.assert_close(terms[active], expected_terms[active], atol=0, rtol=max(tolerance, 1e-9))
    assert (gradient - expected).norm() <= tolerance * expected.norm()


def test_shares_of_processes_add_up(captured: tuple[Path, Path], tmp_path: Path) -> None:
    pair, folder = captured
    whole = problem_of(pair, folder, torch.float64)
    values = start(whole)
    expected = joint_gradient(whole, values, stores_of(whole, tmp_path), no_reduction)
    parts = []
    for mine in ([0, 3, 5], [1, 2, 4]):
        problem = problem_of(pair, folder, torch.float64, mine)
        parts.append(joint_gradient(problem, values, stores_of(problem, tmp_path), no_reduction))
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected[0])
    torch.testing.assert_close(parts[0][1] + parts[1][1], expected[1])


def test_a_question_that_is_not_finite_is_named(captured: tuple[Path, Path], tmp_path: Path) -> None:
    pair, folder = captured
    problem = problem_of(pair, folder, torch.float32)
    with pytest.raises(RpamError, match=r"decoder layer 0 hold inf or NaN on calibration question \d"):
        joint_gradient(problem, start(problem) * torch.nan, stores_of(problem, tmp_path), no_reduction)
