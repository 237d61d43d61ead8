"""Methods that measure the models first, each against the same thing done with whole models in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.fit.batches import micro_batches
from rpam_lite.merge import activations, sensitivity
from rpam_lite.merge.methods import method_of
from rpam_lite.merge.models import Models, Tensors
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import load_layer, load_questions
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.passes import Streamed, hidden_states, weight_gradients
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import open_store
from rpam_lite.streaming.weights import WeightSource
from tests.rpam_lite.engine import QUESTIONS, capture_pair
from tests.rpam_lite.models import layer_outputs, save_pair

DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with its capture, and a base near both."""
    folder = save_pair(tmp_path_factory.mktemp("pair"), "qwen2")
    model = load(folder, "short")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    capture_pair(folder, folder / "capture", Capture(top_k=16))
    return folder


def load(folder: Path, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()


def models_of(folder: Path, scratch: Path) -> Models:
    sources = {name: CheckpointSource(folder / name) for name in ("long", "short", "base")}
    skeleton = Skeleton(folder / "short")

    def open_model(model: str | float, token_ids: Sequence[torch.Tensor]) -> Streamed:
        short = sources["base" if model == "base" else "short"]
        value = {"long": 1.0, "short": 0.0, "base": 0.0}[model] if isinstance(model, str) else model
        source = WeightSource(sources["long"], short, skeleton)
        ends = Ends(sources["long"], short, skeleton, token_ids, chunk_rows=40)
        return Streamed(source, ends, lambda name: torch.tensor(value), torch.float32)

    return Models(
        skeleton,
        sources,
        open_model,
        lambda lengths: micro_batches(list(lengths), 40),
        lambda shapes: open_store("disk", scratch, shapes, torch.float32, torch.device("cpu")),
        folder / "capture",
        load_questions(folder / "capture"),
        seed=3,
    )


def linear_inputs(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: found.update({f"{name}.weight": args[0][0]}))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    ]
    with torch.no_grad():
        model(ids.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return found


def test_a_pass_gives_the_models_hidden_states_and_linear_inputs(folder: Path, tmp_path: Path) -> None:
    models, base = models_of(folder, tmp_path), load(folder, "base")
    ids = models.calibration_set().token_ids
    seen: dict[str, list[torch.Tensor]] = {}

    def see(name: str, inputs: torch.Tensor, real: torch.Tensor) -> None:
        seen.setdefault(name, []).append(inputs[real])

    batches = models.batches([len(t) for t in ids])
    states = dict(hidden_states(models.open("base", ids), ids, batches, see))
    assert len(batches) > 1
    for q, question in enumerate(ids):
        outputs, _ = layer_outputs(base, input_ids=question.unsqueeze(0))
        for layer, output in enumerate(outputs):
            torch.testing.assert_close(states[layer][q], output[0].detach(), atol=1e-5, rtol=1e-5)
    expected = linear_inputs(base, ids[batches[0][0]])
    assert seen.keys() == expected.keys()
    for name, inputs in expected.items():
        torch.testing.assert_close(torch.cat(seen[name])[: len(inputs)], inputs, atol=1e-5, rtol=1e-5)


def gradients_of(model: Any, ids: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(ids.unsqueeze(0)).logits[0]
    torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if ".layers." in name}


def test_weight_gradients_are_those_of_back_propagation(folder: Path, tmp_path: Path) -> None:
    models, long = models_of(folder, tmp_path), load(folder, "long")
    ids, starts = models.calibration_set().token_ids[:3], [1, 4, 6]
    store = models.store([(1, len(t), 32) for t in ids])
    compared = 0
    for _, s, tensors, gradients in weight_gradients(models.open("long", ids), ids, starts, store):
        expected = gradients_of(long, ids[s], starts[s])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(tensors[name], long.state_dict()[name], atol=1e-6, rtol=1e-5)
            compared += 1
    assert compared == 3 * len(expected)


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


def test_qa_merging_fits_the_layers_that_differ_and_turns_the_others(folder: Path, tmp_path: Path) -> None:
    models = models_of(folder, tmp_path)
    questions = models.calibration_set()
    method, options = method_of("qa_merging", {"share": 0.5, "weight": 0.4, "contrast": 0.5})
    assert method.measure is not None
    found = method.measure(models, options)
    captured = [load_layer(folder / "capture", layer, questions)[:2] for layer in range(3)]
    apart = [
        1 - torch.cosine_similarity(torch.cat(a).float(), torch.cat(b).float(), dim=-1).mean() for a, b in captured
    ]
    chosen = sorted(range(3), key=lambda layer: -apart[layer])[:2]
    scalars = {name for name, value in found.items() if value.ndim == 0}
    downs = {name for name, value in found.items() if value.ndim == 2}
    assert downs == {DOWN.format(layer) for layer in {0, 1, 2} - set(chosen) | {2}}
    assert scalars == {n for layer in chosen for n in models.layer_names(layer)} - downs
    lambdas = [0.4] * 3
    for layer in sorted(chosen):
        at = f"model.layers.{layer}.input_layernorm.weight"
        lambdas[layer] = float(found[at])
        losses = {
            value: loss_of_layer(folder, models, lambdas, layer, value, options) for value in torch.linspace(0, 1, 11)
        }
        own = loss_of_layer(folder, models, lambdas, layer, lambdas[layer], options)
        assert own < min(losses.values()) + 5e-3 * (max(losses.values()) - min(losses.values()))
    last = found[DOWN.format(2)]
    assert torch.all(last[:, 0] == lambdas[2])
    states = [outputs[2] for outputs in outputs_of_merge(folder, models, lambdas)]
    expected = activations.turn(models, states, captured[2], options)
    torch.testing.assert_close(last[:, 1:], expected, atol=2e-3, rtol=2e-3)
    l, s = (models.sources[k].get(DOWN.format(2)) for k in ("long", "short"))  # noqa: E741
    plain = s + lambdas[2] * (l - s)
    turned = method.merge(Tensors("x", l, s, None, last), options)
    torch.testing.assert_close(turned, plain + 0.3 * (last[:, 1:] @ plain - plain))
    torch.testing.assert_close(method.merge(Tensors("x", l, s), options), s + 0.4 * (l - s))
    torch.testing.assert_close(method.merge(Tensors("x", l, s, None, torch.tensor(0.9)), options), s + 0.9 * (l - s))


def outputs_of_merge(folder: Path, models: Models, lambdas: list[float]) -> list[list[torch.Tensor]]:
    """Every question's layer outputs [length, hidden], of the merge with a lambda a layer, by transformers."""
    merge, long = load(folder, "short"), dict(load(folder, "long").named_parameters())
    with torch.no_grad():
        for name, parameter in merge.named_parameters():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            parameter.lerp_(long[name], 0.4 if layer is None else lambdas[layer])
        ids = models.calibration_set().token_ids
        return [[o[0] for o in layer_outputs(merge, input_ids=q.unsqueeze(0))[0]] for q in ids]


def loss_of_layer(
    folder: Path, models: Models, lambdas: list[float], layer: int, value: Any, options: Mapping[str, float]
) -> float:
    """RPAM's loss after a layer, if that one had this lambda."""
    questions = models.calibration_set()
    outputs = outputs_of_merge(folder, models, [*lambdas[:layer], float(value), *lambdas[layer + 1 :]])
    long, short = load_layer(folder / "capture", layer, questions)[:2]
    pull = gap = push = 0.0
    for q, states in enumerate(outputs):
        pair = (long[q], short[q]) if questions.is_long[q] else (short[q], long[q])
        z, pos, neg = (t.float().flatten() for t in (states[layer][questions.positions[q]], *pair))
        pull += float((z - pos).square().sum())
        gap += float((pos - neg).square().sum())
        c, d = (torch.exp(torch.cosine_similarity(z, other, dim=0) / 0.1) for other in (pos, neg))
        push -= float(torch.log(c / (c + d)))
    return pull / gap + options["contrast"] * push / len(outputs)


def test_a_calibration_set_of_one_label_is_refused(folder: Path, tmp_path: Path) -> None:
    capture_pair(folder, tmp_path / "capture", questions=[q for q in QUESTIONS if q.label == "long"])
    models = models_of(folder, tmp_path)
    only_long = Models(**{**vars(models), "questions": load_questions(tmp_path / "capture")})
    with pytest.raises(RpamError, match="holds no short question"):
        sensitivity.sensitivity_weights(only_long, {"samples": 2, "weight": 0.5, "temperature": 1})
