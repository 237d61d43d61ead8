"""What a merge method may measure of a small pair, and the same done with whole models in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.fit.batches import micro_batches
from rpam_lite.merge.models import Models
from rpam_lite.recipe import Capture
from rpam_lite.streaming.activations import load_questions
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.passes import Streamed
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import open_store
from rpam_lite.streaming.weights import WeightSource
from tests.rpam_lite.engine import capture_pair
from tests.rpam_lite.models import save_pair

DOWN = "model.layers.{}.mlp.down_proj.weight"


def save_measured(folder: Path) -> Path:
    """A pair with its capture, and a base near both, as `folder`/long, short, base and capture."""
    save_pair(folder, "qwen2")
    model = load(folder, "short")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    capture_pair(folder, folder / "capture", Capture(top_k=16))
    return folder


def load(folder: Path, name: str) -> Any:
    """One model of the folder in transformers, in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()


def models_of(folder: Path, scratch: Path) -> Models:
    """All that a method may measure of the folder; stores go into `scratch`."""
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
    """Inputs [length, in] of every linear of the layers, by the weight's name."""
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


def gradients_of(model: Any, ids: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
    """Gradients of the mean cross-entropy of ids[start:], by the layers' weights."""
    model.zero_grad()
    logits = model(ids.unsqueeze(0)).logits[0]
    torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if ".layers." in name}
