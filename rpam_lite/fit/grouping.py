"""Where each tensor's lambda stands in the flat vector that a fit moves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from rpam_lite.checkpoint.arithmetic import LowRank
from rpam_lite.fit.coefficients import Coefficients, LowRankFile
from rpam_lite.fit.groups import Granularity, group_of
from rpam_lite.fit.low_rank import FieldForm, fingerprint, mean_of, numbers_gradient, spread_about
from rpam_lite.fit.objective import ridge

UNIT_BOX = FieldForm(1, 0.0, 1.0)
_GROUP_IN_LAYER = re.compile(r"^layers\.(\d+)(.*)$")


@dataclass(frozen=True)
class Grouping:
    """Where each tensor's lambda stands in one flat vector.

    Attributes:
        granularity: Which tensors share a lambda.
        group: Group by tensor name.
        size: Number of values by group: 1, one a row, or those of a field.
        start: Index of each group's first value.
        form: Of `low_rank`: what all fields share.
        matrices: Of `low_rank`: shape of the matrix of each group that has one; its bias has the field's base.
    """

    granularity: Granularity
    group: dict[str, str]
    size: dict[str, int]
    start: dict[str, int]
    form: FieldForm
    matrices: dict[str, tuple[int, ...]]

    def __len__(self) -> int:
        return sum(self.size.values())

    def of(self, values: torch.Tensor, tensor: str) -> torch.Tensor:
        """The tensor's lambda from `values` [len(self)]: a scalar or [rows], as a view; of a field [rows, columns]."""
        group = self.group[tensor]
        if self._has_field(tensor):
            return self.field(values, group).dense()
        return self._own(values, group)

    def add_gradient(self, gradient: torch.Tensor, values: torch.Tensor, tensor: str, of_lambda: torch.Tensor) -> None:
        """Add what one tensor contributes.

        Args:
            gradient: dloss/dvalues [len(self)], added to in place.
            values: All values [len(self)].
            tensor: Its name.
            of_lambda: dloss/dlambda, of the shape of `of`; may be overwritten.
        """
        group = self.group[tensor]
        if self._has_field(tensor):
            self._all(gradient, group).add_(numbers_gradient(self.field(values, group), of_lambda))
        else:
            self._own(gradient, group).add_(of_lambda)

    def field(self, values: torch.Tensor, group: str) -> LowRank:
        """The field of a group of `matrices`."""
        return self.form.field(self._all(values, group), self.matrices[group])

    def level(self, values: torch.Tensor, group: str) -> torch.Tensor:
        """The values that move a group's lambda as a whole, as a view: all, or a field's base."""
        return self._all(values, group)[: 1 if group in self.matrices else None]

    def start_values(self, value: float) -> torch.Tensor:
        """The values that give every tensor this lambda, float32 [len(self)]."""
        return torch.cat(
            [
                self.form.start(value, self.matrices[g]) if g in self.matrices else torch.full((size,), value)
                for g, size in self.size.items()
            ]
        )

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest of every value, float32 [len(self)] each."""
        found = [
            self.form.bounds(self.matrices[g])
            if g in self.matrices
            else (torch.full((size,), self.form.lower), torch.full((size,), self.form.upper))
            for g, size in self.size.items()
        ]
        return torch.cat([lower for lower, _ in found]), torch.cat([upper for _, upper in found])

    def variance(self, values: torch.Tensor) -> torch.Tensor:
        """Mean squared deviation of lambda from its mean, each value (each matrix, of fields) counting alike."""
        if not self.matrices:
            return ridge(values)
        fields = {g: self.field(values, g) for g in self.matrices}
        means = [mean_of(fields[g]) if g in fields else values[self.start[g]] for g in self.size]
        centre = torch.stack(means).mean()
        spreads = [
            spread_about(fields[g], centre) if g in fields else (values[self.start[g]] - centre).square()
            for g in self.size
        ]
        return torch.stack(spreads).mean()

    def _has_field(self, tensor: str) -> bool:
        return self.group[tensor] in self.matrices and tensor.endswith(".weight")

    def _all(self, values: torch.Tensor, group: str) -> torch.Tensor:
        return values[self.start[group] : self.start[group] + self.size[group]]

    def _own(self, values: torch.Tensor, group: str) -> torch.Tensor:
        own = self.level(values, group)
        return own[0] if len(own) == 1 else own

    def neighbours(self) -> torch.Tensor:
        """Indices of the same part of consecutive decoder layers, int64 [2, pairs]; rows are left out."""
        pairs = []
        for group in self.size:
            match = _GROUP_IN_LAYER.match(group)
            if match is not None and (self.size[group] == 1 or group in self.matrices):
                following = f"layers.{int(match[1]) + 1}{match[2]}"
                if following in self.start:
                    pairs.append((self.start[group], self.start[following]))
        return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T

    def coefficients(self, values: torch.Tensor) -> Coefficients:
        """The file's contents for these values."""
        pieces = torch.split(values.float(), list(self.size.values()))
        named = {g: p.tolist() if self.size[g] > 1 else p.item() for g, p in zip(self.size, pieces, strict=True)}
        if self.granularity != "low_rank":
            return Coefficients(granularity=self.granularity, values=named)
        fields = {g: self.field(values.detach().float().cpu().clone(), g) for g in self.matrices}
        named |= {g: float(field.dense().mean()) for g, field in fields.items()}
        told = LowRankFile(**asdict(self.form), sha256=fingerprint(fields))
        found = Coefficients(version=2, granularity="low_rank", values=named, low_rank=told)
        found._fields = fields
        return found


def grouping(tensors: Mapping[str, tuple[int, ...]], granularity: Granularity, form: FieldForm = UNIT_BOX) -> Grouping:
    """Group all tensors of a model.

    Args:
        tensors: Their shapes by name.
        granularity: Which of them share a lambda.
        form: The box that lambda is kept in, and of `low_rank` the rank.
    """
    group = {name: group_of(name, granularity) for name in tensors}
    matrices: dict[str, tuple[int, ...]] = {
        group[name]: shape
        for name, shape in tensors.items()
        if granularity == "low_rank" and len(shape) == 2 and group[name].startswith("layers.")
    }
    size = {
        g: form.size(matrices[g])
        if g in matrices
        else shape[0]
        if granularity == "row" and g.startswith("layers.")
        else 1
        for name, shape in tensors.items()
        for g in [group[name]]
    }
    ordered = {g: size[g] for g in sorted(size, key=_natural)}
    start, total = {}, 0
    for g, count in ordered.items():
        start[g] = total
        total += count
    return Grouping(granularity, group, ordered, start, form, matrices)


def _natural(group: str) -> tuple[object, ...]:
    """Sort key that puts layers.2 before layers.10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in group.split("."))
