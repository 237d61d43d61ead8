"""The coefficients file: which lambda every tensor gets. Lambda weights the Long parent.

W = S + lambda * (L - S)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError
from rpam_lite.fit.elements import read_elements

Granularity = Literal["scalar", "layer", "block", "matrix", "row", "element"]
_DECODER_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")

_GROUP_IN_LAYER = re.compile(r"^layers\.(\d+)(.*)$")


class Coefficients(BaseModel):
    """Contents of coefficients.json; `version` changes when the meaning of a field does.

    With granularity `element` the decoder layers' values are means, and lambda of each weight stands in
    files beside it.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    granularity: Granularity
    weights: Literal["long"] = "long"
    values: dict[str, float | list[float]]
    _folder: Path = PrivateAttr(default=Path())

    def of(self, tensor: str) -> float | torch.Tensor:
        """Lambda of one tensor: one value, float32 [rows], or float32 of the tensor's shape.

        Raises:
            RpamError: The file has no value for the group the tensor belongs to.
        """
        group = group_of(tensor, self.granularity)
        if group not in self.values:
            raise RpamError(
                f"coefficients.json: has no value for {group!r}, which tensor {tensor!r} belongs to; "
                "it was fitted for other checkpoints, so fit again."
            )
        value = self.values[group]
        match = _DECODER_LAYER.match(tensor)
        if self.granularity == "element" and match is not None:
            return read_elements(self._folder, int(match[1]), tensor)
        return torch.tensor(value) if isinstance(value, list) else value

    def means(self) -> dict[str, float]:
        """One value a group: lambda, or the mean over its rows."""
        return {g: sum(v) / len(v) if isinstance(v, list) else v for g, v in self.values.items()}


@dataclass(frozen=True)
class Grouping:
    """Where each tensor's lambda stands in one flat vector.

    Attributes:
        granularity: Which tensors share a lambda.
        group: Group by tensor name.
        rows: Number of values by group: 1, or one a row.
        start: Index of each group's first value.
    """

    granularity: Granularity
    group: dict[str, str]
    rows: dict[str, int]
    start: dict[str, int]

    def __len__(self) -> int:
        return sum(self.rows.values())

    def of(self, values: torch.Tensor, tensor: str) -> torch.Tensor:
        """The tensor's lambda as a view of `values` [len(self)]: a scalar, or [rows]."""
        group = self.group[tensor]
        start = self.start[group]
        return values[start] if self.rows[group] == 1 else values[start : start + self.rows[group]]

    def neighbours(self) -> torch.Tensor:
        """Indices of the same part of consecutive decoder layers, int64 [2, pairs]; rows are left out."""
        pairs = []
        for group in self.rows:
            match = _GROUP_IN_LAYER.match(group)
            if match is not None and self.rows[group] == 1:
                following = f"layers.{int(match[1]) + 1}{match[2]}"
                if following in self.start:
                    pairs.append((self.start[group], self.start[following]))
        return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T

    def coefficients(self, values: torch.Tensor) -> Coefficients:
        """The file's contents for these values."""
        pieces = torch.split(values.float(), list(self.rows.values()))
        named = {g: p.tolist() if self.rows[g] > 1 else p.item() for g, p in zip(self.rows, pieces, strict=True)}
        return Coefficients(granularity=self.granularity, values=named)


def grouping(tensors: Mapping[str, tuple[int, ...]], granularity: Granularity) -> Grouping:
    """Group all tensors of a model, given their shapes by name."""
    group = {name: group_of(name, granularity) for name in tensors}
    rows = {
        g: shape[0] if granularity == "row" and g.startswith("layers.") else 1
        for name, shape in tensors.items()
        for g in [group[name]]
    }
    ordered = {g: rows[g] for g in sorted(rows, key=_natural)}
    start, total = {}, 0
    for g, count in ordered.items():
        start[g] = total
        total += count
    return Grouping(granularity, group, ordered, start)


def _natural(group: str) -> tuple[object, ...]:
    """Sort key that puts layers.2 before layers.10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in group.split("."))


def group_of(tensor: str, granularity: Granularity) -> str:
    """Name of the group of tensors that share one lambda.

    `scalar`: the whole model. `layer`: a decoder layer, the embedding, the final norm, the head.
    `block`: attention (with the norm before it) and MLP of a layer apart. `matrix`: each module of a
    layer (a bias goes with its weight). `row`: the same modules, one lambda an output row; embedding,
    final norm and head keep one each. `element`: the same modules, one lambda a weight.
    """
    if granularity == "scalar":
        return "model"
    match = _DECODER_LAYER.match(tensor)
    if match is None:
        return tensor.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    layer, module, _ = match.groups()
    if granularity == "layer":
        return f"layers.{layer}"
    if granularity == "block":
        attention = module.startswith("self_attn") or module == "input_layernorm"
        return f"layers.{layer}.{'attention' if attention else 'mlp'}"
    return f"layers.{layer}.{module}"


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
        loaded = Coefficients.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RpamError(f"{path}: `{place}` {first['msg']} (got {first['input']!r}); fit again.") from None
    loaded._folder = path.parent
    return loaded
