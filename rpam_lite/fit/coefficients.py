"""The coefficients file: which lambda every tensor gets. Lambda weights the Long parent.

W = S + lambda * (L - S)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator

from rpam_lite.checkpoint.arithmetic import Lambda, LowRank
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError
from rpam_lite.fit.elements import read_elements
from rpam_lite.fit.groups import DECODER_LAYER, Granularity, group_of
from rpam_lite.fit.low_rank import FieldForm, load_fields, save_fields


class LowRankFile(BaseModel):
    """What coefficients.json says of the factors beside it."""

    model_config = ConfigDict(extra="forbid")

    rank: int
    lower: float
    upper: float
    sha256: str


class DecisionRow(BaseModel):
    """What the merge's output head gains in the row of one token (`rpam_lite.fit.decision`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: int
    row: tuple[float, ...]  # fp32 values, one a hidden dimension


class Coefficients(BaseModel):
    """Contents of coefficients.json; `version` changes when the meaning of a field does.

    With granularity `element` and `low_rank` the matrices' values are means; lambda of each weight stands in
    files beside it (`elements/`, `factors.safetensors`). Version 3 is that with a decision row, 2 else that of
    `low_rank`, 1 that of the others.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1, 2, 3] = 1
    granularity: Granularity
    weights: Literal["long"] = "long"
    values: dict[str, float | list[float]]
    low_rank: LowRankFile | None = None
    decision: DecisionRow | None = None
    _folder: Path = PrivateAttr(default=Path())
    _fields: dict[str, LowRank] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _version_tells_the_fields(self) -> Coefficients:
        if (self.granularity == "low_rank") != (self.low_rank is not None):
            raise ValueError("`granularity: low_rank` and `low_rank` go together")
        if self.version != (3 if self.decision is not None else 2 if self.low_rank is not None else 1):
            raise ValueError("`version` must be 3 with `decision`, 2 with `low_rank` alone, 1 with neither")
        return self

    def deciding(self, decision: DecisionRow) -> Coefficients:
        """The same with this decision row."""
        return self.model_copy(update={"version": 3, "decision": decision})

    def of(self, tensor: str) -> Lambda:
        """Lambda of one tensor: one value, float32 [rows], float32 of the tensor's shape, or a field of low rank.

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
        if (field := self._fields.get(group)) is not None:
            return field if tensor.endswith(".weight") else float(field.base)
        match = DECODER_LAYER.match(tensor)
        if self.granularity == "element" and match is not None:
            return read_elements(self._folder, int(match[1]), tensor)
        return torch.tensor(value) if isinstance(value, list) else value

    def means(self) -> dict[str, float]:
        """One value a group: lambda, or the mean over its rows."""
        return {g: sum(v) / len(v) if isinstance(v, list) else v for g, v in self.values.items()}


def scalar(value: float) -> Coefficients:
    """One lambda for the whole model: plain interpolation."""
    return Coefficients(granularity="scalar", values={"model": value})


def save(coefficients: Coefficients, path: Path) -> None:
    """Write coefficients.json, and the factors of its fields beside it."""
    if coefficients._fields:
        save_fields(path.parent, coefficients._fields)
    write_json(path, coefficients.model_dump(exclude_none=True))


def load(path: Path) -> Coefficients:
    """Read coefficients.json.

    Raises:
        RpamError: Missing, not JSON, of another version or form, or with factors that are not its own.
    """
    raw = read_json(path, "the coefficients file")
    try:
        loaded = Coefficients.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        got = f"`{place}` {first['msg']} (got {first['input']!r})" if place else first["msg"]
        raise RpamError(f"{path}: {got}; fit again.") from None
    loaded._folder = path.parent
    if (told := loaded.low_rank) is not None:
        loaded._fields = load_fields(path.parent, FieldForm(told.rank, told.lower, told.upper), told.sha256)
    return loaded
