"""Methods that measure activations first (AIM, ACM, ReACT), each against the same done with whole models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rpam_lite.merge import activations
from rpam_lite.merge.methods import method_of
from rpam_lite.merge.models import Tensors
from tests.rpam_lite.measured_models import DOWN, linear_inputs, load, models_of
from tests.rpam_lite.models import layer_outputs


def test_aim_scales_input_channels_by_the_bases_inputs(folder: Path, tmp_path: Path) -> None:
    models, base = models_of(folder, tmp_path), load(folder, "base")
    method, options = method_of("aim", {"long": 0.8, "short": 0.3, "omega": 0.25})
    assert method.measure is not None
    found = method.measure(models, options)
    inputs = [linear_inputs(base, ids) for ids in models.calibration_set().token_ids]
    assert found.keys() == inputs[0].keys()
    for name in found:
        torch.testing.assert_close(
            found[name], torch.cat([i[name] for i in inputs]).abs().mean(0), rtol=1e-4, atol=1e-6
        )
    name = DOWN.format(1)
    l, s, b = (models.sources[k].get(name) for k in ("long", "short", "base"))  # noqa: E741
    share = found[name] / found[name].max()
    expected = b + (0.8 * (l - b) + 0.3 * (s - b)) * (1 - share * 0.75)
    torch.testing.assert_close(method.merge(Tensors(name, l, s, b, found[name]), options), expected)
    plain = method.merge(Tensors("model.norm.weight", l, s, b), options)
    torch.testing.assert_close(plain, b + 0.8 * (l - b) + 0.3 * (s - b))
    whole, ties = method_of("aim_ties", {"density": 1.0, "omega": 1.0})
    of_ties, its = method_of("ties", {"density": 1.0})
    tensors = Tensors(name, l, s, b, found[name])
    torch.testing.assert_close(whole.merge(tensors, ties), of_ties.merge(tensors, its))


def test_mutual_information_of_known_distributions() -> None:
    values = torch.randn(64_000, generator=torch.Generator().manual_seed(1))
    other = torch.randn(64_000, generator=torch.Generator().manual_seed(2))
    assert activations.mutual_information(values, values.exp(), 8) == pytest.approx(math.log(8), abs=1e-3)
    assert activations.mutual_information(values, other, 8) < 1e-3
    # Jointly normal with correlation r: -log(1 - r^2) / 2.
    mixed = 0.8 * values + 0.6 * other
    assert activations.mutual_information(values, mixed, 32) == pytest.approx(-math.log(0.36) / 2, rel=0.05)


def test_acm_weights_the_layers_that_changed_more(folder: Path, tmp_path: Path) -> None:
    models = models_of(folder, tmp_path)
    questions = models.calibration_set()
    method, options = method_of("acm", {"bins": 8})
    assert method.measure is not None
    found = method.measure(models, options)
    assert set(found) == set(models.sources["long"].names())

    def states(name: str) -> list[torch.Tensor]:
        whole = [layer_outputs(load(folder, name), input_ids=ids.unsqueeze(0))[0] for ids in questions.token_ids]
        return [
            torch.cat([outputs[layer][0][p] for outputs, p in zip(whole, questions.positions, strict=True)]).detach()
            for layer in range(3)
        ]

    base = states("base")
    for place, parent in enumerate(("long", "short")):
        own = [s.bfloat16().float() for s in states(parent)]
        shared = [activations.mutual_information(b, o, 8) for b, o in zip(base, own, strict=True)]
        for layer, information in enumerate(shared):
            expected = 1 - 1 / (1 + math.exp(-0.7 * (information - max(shared))))
            assert float(found[DOWN.format(layer)][place]) == pytest.approx(expected, abs=2e-3)
        assert float(found["model.norm.weight"][place]) == pytest.approx(
            float(torch.stack([found[DOWN.format(i)][place] for i in range(3)]).mean()), abs=1e-6
        )
    merged = method.merge(Tensors("some", *torch.eye(3), torch.tensor([0.5, 0.9])), options)
    torch.testing.assert_close(merged, torch.tensor([0.5, 0.9, 1 - 0.5 - 0.9]))


def test_react_solves_its_least_squares(folder: Path, tmp_path: Path) -> None:
    """W of one label minimises |W X - Y|^2 + beta |W - W_orth|^2, and the average weighs it by p (C + beta)."""
    models = models_of(folder, tmp_path)
    questions = models.calibration_set()
    method, options = method_of("react", {"long": 0.6, "beta": 0.2, "weight": 0.3})
    assert method.measure is not None
    found = method.measure(models, options)
    assert found.keys() == {DOWN.format(layer) for layer in range(3)}
    merge = load(folder, "short")
    long, short = load(folder, "long"), load(folder, "short")
    with torch.no_grad():
        for p, l in zip(merge.parameters(), long.parameters(), strict=True):  # noqa: E741
            p.lerp_(l, 0.3)
    states: dict[str, list[torch.Tensor]] = {"long x": [], "long y": [], "short x": [], "short y": []}
    for q, ids in enumerate(questions.token_ids):
        label = "long" if questions.is_long[q] else "short"
        for axis, model in (("x", merge), ("y", long if label == "long" else short)):
            output = layer_outputs(model, input_ids=ids.unsqueeze(0))[0][1][0].detach()[questions.prompt_lengths[q] :]
            output = output.bfloat16().float() if axis == "y" else output
            states[f"{label} {axis}"].append(output / output.norm(dim=-1, keepdim=True))
    top, bottom = torch.zeros(32, 32), torch.zeros(32, 32)
    for label, share in (("long", 0.6), ("short", 0.4)):
        x, y = torch.cat(states[f"{label} x"]).T, torch.cat(states[f"{label} y"]).T
        u, _, v = torch.linalg.svd(y @ x.T + 1e-3 * (y @ x.T).norm() * torch.eye(32))
        inverse = torch.linalg.inv(x @ x.T + 0.2 * torch.eye(32))
        top += share * (y @ x.T + 0.2 * u @ v)
        turned = (y @ x.T + 0.2 * u @ v) @ inverse
        step = turned @ x @ x.T - y @ x.T + 0.2 * (turned - u @ v)
        assert step.abs().max() < 1e-4
        bottom += share * (x @ x.T + 0.2 * torch.eye(32))
    torch.testing.assert_close(found[DOWN.format(1)], top @ torch.linalg.inv(bottom), atol=2e-3, rtol=2e-3)
    l, s = (models.sources[k].get(DOWN.format(1)) for k in ("long", "short"))  # noqa: E741
    plain = s + 0.3 * (l - s)
    expected = plain + 0.3 * (found[DOWN.format(1)] @ plain - plain)
    torch.testing.assert_close(method.merge(Tensors("x", l, s, None, found[DOWN.format(1)]), options), expected)
