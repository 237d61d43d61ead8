"""One lambda a weight: a safetensors file a decoder layer, beside coefficients.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError


def elements_file(folder: Path, layer: int) -> Path:
    """File of one decoder layer."""
    return folder / "elements" / f"layer-{layer:03}.safetensors"


def save_elements(folder: Path, layer: int, lambdas: Mapping[str, torch.Tensor], log: Mapping[str, float]) -> None:
    """Write lambda of every weight of a layer, float32, by the tensors' names in the checkpoint, and the fit's log."""
    with whole_file(elements_file(folder, layer)) as part:
        tensors = {name: value.cpu().contiguous() for name, value in lambdas.items()}
        save_file(tensors, part, {"log": json.dumps(dict(log))})


def load_elements(folder: Path, layer: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Lambda of every weight of a layer, and the log of its fit.

    Raises:
        RpamError: The file is damaged.
    """
    file = elements_file(folder, layer)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(opened.metadata()["log"])  # noqa: SIM118
    except SafetensorError as error:
        raise RpamError(f"{file}: is damaged ({error}); delete it, and its layer is fitted again.") from None


def read_elements(folder: Path, layer: int, tensor: str) -> torch.Tensor:
    """Lambda of every weight of one tensor, float32 of its shape.

    Raises:
        RpamError: The file is missing or damaged, or has no such tensor.
    """
    file = elements_file(folder, layer)
    try:
        with safe_open(file, framework="pt") as opened:
            values: torch.Tensor = opened.get_tensor(tensor)
            return values
    except (OSError, SafetensorError) as error:
        raise RpamError(f"{file}: has no lambda for {tensor} ({error}); fit again.") from None
