"""Methods that measure gradients first (FIM, Sens), each against the same done with whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rpam_lite.errors import RpamError
from rpam_lite.merge import sensitivity
from rpam_lite.merge.methods import method_of
from rpam_lite.merge.models import Models, Tensors
from rpam_lite.streaming.activations import load_questions
from tests.rpam_lite.engine import QUESTIONS, capture_pair
from tests.rpam_lite.measured_models import DOWN, gradients_of, load, models_of


def test_fim_gives_layers_with_more_fisher_information_less(folder: Path, tmp_path: Path) -> None:
    models, short = models_of(folder, tmp_path), load(folder, "short")
    method, options = method_of("fim", {"sequences": 3, "tokens": 9})
    assert method.measure is not None
    found = method.measure(models, options)
    generator = torch.Generator().manual_seed(models.seed)
    scores = torch.zeros(3)
    counts = torch.zeros(3)
    for ids in torch.randint(97, (3, 9), generator=generator):
        for name, gradient in gradients_of(short, ids, 1).items():
            layer = int(name.split(".")[2])
            scores[layer] += gradient.square().sum()
            counts[layer] += gradient.numel()
    for layer in range(3):
        names = [n for n in models.sources["long"].names() if f".layers.{layer}." in n]
        scores[layer] *= sum(
            (models.sources["long"].get(n) - models.sources["short"].get(n)).square().sum() for n in names
        )
    logs = (scores / counts).log()
    expected = torch.sigmoid(-(logs - logs.mean()) / logs.std())
    for layer in range(3):
        assert float(found[DOWN.format(layer)]) == pytest.approx(float(expected[layer]), abs=1e-4)
    assert float(found["model.norm.weight"]) == pytest.approx(float(expected.mean()), abs=1e-4)


def test_fim_keeps_the_largest_share_and_the_norm() -> None:
    short = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    delta = torch.tensor([[0.1, -0.4], [0.2, 0.0]])
    method, options = method_of("fim", {"density": 0.5, "gate": 0.5, "drift": 1.0})
    tensors = [
        Tensors(n, short + delta, short, None, torch.tensor(0.5)) for n in ("up_proj.weight", "gate_proj.weight")
    ]
    kept = torch.tensor([[0.0, -0.4], [0.2, 0.0]])
    torch.testing.assert_close(method.merge(tensors[0], options), short + 0.5 * kept)
    torch.testing.assert_close(method.merge(tensors[1], options), short + 0.25 * kept)
    scaled = method.merge(tensors[0], {**options, "drift": 0.0})
    torch.testing.assert_close(scaled, (short + 0.5 * kept) * (5 / (short + 0.5 * kept).norm()))


def test_sens_weights_layers_by_sensitivity(folder: Path, tmp_path: Path) -> None:
    models = models_of(folder, tmp_path)
    method, options = method_of("sens", {"weight": 0.6, "temperature": 0.5, "samples": 2})
    assert method.measure is not None
    found = method.measure(models, options)
    shares = {}
    for parent, label in (("long", "short"), ("short", "long")):
        model = load(folder, parent)
        sums = torch.zeros(3)
        for question in [q for q in QUESTIONS if q.label == label][:2]:
            ids = torch.tensor(question.prompt_ids + question.response_ids)
            for name, gradient in gradients_of(model, ids, len(question.prompt_ids)).items():
                sums[int(name.split(".")[2])] += (model.state_dict()[name] * gradient).abs().sum()
        shares[parent] = sums / sums.norm()
    both = torch.softmax(torch.stack([0.6 * shares["long"], 0.4 * shares["short"]]) / 0.5, 0)
    for layer in range(3):
        assert float(found[DOWN.format(layer)]) == pytest.approx(float(2 * 0.6 * both[0, layer]), abs=1e-4)
    assert float(found["model.norm.weight"]) == pytest.approx(0.6)


def test_a_calibration_set_of_one_label_is_refused(folder: Path, tmp_path: Path) -> None:
    capture_pair(folder, tmp_path / "capture", questions=[q for q in QUESTIONS if q.label == "long"])
    models = models_of(folder, tmp_path)
    only_long = Models(**{**vars(models), "questions": load_questions(tmp_path / "capture")})
    with pytest.raises(RpamError, match="holds no short question"):
        sensitivity.sensitivity_weights(only_long, {"samples": 2, "weight": 0.5, "temperature": 1})
