"""The coefficients file: which lambda every tensor gets. Lambda weights the Long parent.

W = S + lambda * (L - S)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError

Granularity = Literal["layer", "matrix", "scalar"]
_DECODER_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")


class Coefficients(BaseModel):
    """Contents of coefficients.json; `version` changes when the meaning of a field does."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    granularity: Granularity
    weights: Literal["long"] = "long"
    values: dict[str, float]

    def of(self, tensor: str) -> float:
        """Lambda of one tensor.

        Raises:
            RpamError: The file has no value for the group the tensor belongs to.
        """
        group = group_of(tensor, self.granularity)
        if group not in self.values:
            raise RpamError(
                f"coefficients.json: has no value for {group!r}, which tensor {tensor!r} belongs to; "
                "it was fitted for other checkpoints, so fit again."
            )
        return self.values[group]


def group_of(tensor: str, granularity: Granularity) -> str:
    """Name of the group of tensors that share one lambda.

    `layer`: a decoder layer, the embedding, the final norm, the head. `matrix`: each module of a
    decoder layer (a bias goes with its weight). `scalar`: the whole model.
    """
    if granularity == "scalar":
        return "model"
    match = _DECODER_LAYER.match(tensor)
    if match is None:
        return tensor.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    layer, module, _ = match.groups()
    return f"layers.{layer}" if granularity == "layer" else f"layers.{layer}.{module}"


def scalar(value: float) -> Coefficients:
    """One lambda for the whole model: plain interpolation."""
    return Coefficients(granularity="scalar", values={"model": value})


def save(coefficients: Coefficients, path: Path) -> None:
    """Write coefficients.json."""
    write_json(path, coefficients.model_dump())


def load(path: Path) -> Coefficients:
    """Read coefficients.json.

    Raises:
        RpamError: Missing, not JSON, or of another version or form.
    """
    raw = read_json(path, "the coefficients file")
    try:
        return Coefficients.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RpamError(f"{path}: `{place}` {first['msg']} (got {first['input']!r}); fit again.") from None
