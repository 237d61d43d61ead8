"""One lambda a weight from few numbers: a field of low rank over each matrix.

    lambda(r, c) = base + sum over k of u_k(r) * v_k(c), kept between `fit.lower` and `fit.upper`

Rank R costs 1 + R * (rows + columns) numbers a matrix, where one lambda a weight (ProDistill, arXiv
2502.12706; RPAM's release) costs rows * columns. As in LoRA (arXiv 2106.09685) one factor of every
product starts at 0, so that the fit begins at one lambda for the whole matrix, and the other one at a
pattern, so that the gradient is not 0 there. Rows and columns take turns: product 1 begins as one
lambda a row, product 2 adds one a column, the next ones begin at cosines across them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path

import torch
from safetensors.torch import save_file

from rpam_lite.checkpoint.arithmetic import LowRank
from rpam_lite.checkpoint.files import load_tensors, whole_file
from rpam_lite.errors import RpamError

_PARTS = ("base", "rows", "columns")


@dataclass(frozen=True)
class FieldForm:
    """What all matrices' fields share.

    Attributes:
        rank: Products.
        lower: Least lambda.
        upper: Largest lambda.
    """

    rank: int
    lower: float
    upper: float

    def size(self, shape: tuple[int, ...]) -> int:
        """Numbers of one matrix."""
        return 1 + self.rank * sum(shape)

    def field(self, values: torch.Tensor, shape: tuple[int, ...]) -> LowRank:
        """The field whose numbers `values` [size] are; its parts are views."""
        end = 1 + self.rank * shape[0]
        rows, columns = values[1:end].view(self.rank, -1), values[end:].view(self.rank, -1)
        return LowRank(values[0], rows, columns, self.lower, self.upper)

    def start(self, value: float, shape: tuple[int, ...]) -> torch.Tensor:
        """Numbers of the field that is `value` everywhere, float32 [size]."""
        rows, columns = (torch.zeros(self.rank, length) for length in shape)
        for k in range(self.rank):
            fixed = columns if k % 2 == 0 else rows
            fixed[k] = torch.cos(pi * (k // 2) * (torch.arange(fixed.shape[1]) + 0.5) / fixed.shape[1])
        return torch.cat([torch.tensor([value]), rows.flatten(), columns.flatten()])

    def bounds(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest number of each kind, float32 [size]: one product alone can cross the whole box."""
        reach = max(1.0, self.upper - self.lower)
        lower, upper = torch.full((self.size(shape),), -reach), torch.full((self.size(shape),), reach)
        lower[0], upper[0] = self.lower, self.upper
        return lower, upper


def numbers_gradient(field: LowRank, of_lambda: torch.Tensor) -> torch.Tensor:
    """dloss/d(numbers of the field) [size] from dloss/dlambda [rows, columns], which is overwritten."""
    raw = field.unbounded()
    of_lambda.mul_((raw >= field.lower) & (raw <= field.upper))
    parts = (of_lambda.sum().view(1), field.columns @ of_lambda.T, field.rows @ of_lambda)
    return torch.cat([part.flatten() for part in parts])


def mean_of(field: LowRank) -> torch.Tensor:
    """Mean of lambda over the matrix before it is cut off, a scalar."""
    return field.base + (field.rows.mean(1) * field.columns.mean(1)).sum()


def spread_about(field: LowRank, centre: torch.Tensor) -> torch.Tensor:
    """Mean of (lambda - centre)^2 over the matrix before it is cut off, a scalar; the matrix is never formed."""
    away = field.base - centre
    cross = (field.rows @ field.rows.T) * (field.columns @ field.columns.T)
    return (
        away.square()
        + 2 * away * (mean_of(field) - field.base)
        + cross.sum() / (field.rows.shape[1] * field.columns.shape[1])
    )


def factors_file(folder: Path) -> Path:
    """File of all fields of a fit."""
    return folder / "factors.safetensors"


def fingerprint(fields: Mapping[str, LowRank]) -> str:
    """SHA-256 over all numbers."""
    digest = hashlib.sha256()
    for group in sorted(fields):
        digest.update(group.encode())
        for part in _PARTS:
            digest.update(getattr(fields[group], part).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_fields(folder: Path, fields: Mapping[str, LowRank]) -> None:
    """Write all fields, float32, as GROUP.base, GROUP.rows [rank, rows] and GROUP.columns [rank, columns]."""
    tensors = {
        f"{group}.{part}": getattr(field, part).float().cpu().clone()
        for group, field in fields.items()
        for part in _PARTS
    }
    with whole_file(factors_file(folder)) as part:
        save_file(tensors, part)


def load_fields(folder: Path, form: FieldForm, sha256: str) -> dict[str, LowRank]:
    """All fields by group.

    Raises:
        RpamError: The file is missing or damaged, or belongs to other coefficients.
    """
    file = factors_file(folder)
    tensors = load_tensors(file, "fit again")
    groups = [name.removesuffix(".base") for name in tensors if name.endswith(".base")]
    fields = {
        g: LowRank(tensors[f"{g}.base"], tensors[f"{g}.rows"], tensors[f"{g}.columns"], form.lower, form.upper)
        for g in groups
    }
    if fingerprint(fields) != sha256:
        raise RpamError(f"{file}: is not the one that coefficients.json beside it was written with; fit again.")
    return fields
