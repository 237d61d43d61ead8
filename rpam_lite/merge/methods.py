"""The merge methods that a recipe can name: `merge: {method: ties, options: {density: 0.3}}`.

A method is a function of the parents' tensors of one name, in fp32. Others plug in through the
entry-point group `rpam_lite.merge_methods`: each entry is an object with the attributes of `MergeMethod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol

import torch

from rpam_lite.errors import RpamError
from rpam_lite.merge.task_vectors import Merge, scalar, through_peft
from rpam_lite.recipe import OURS

GROUP = "rpam_lite.merge_methods"


class MergeMethod(Protocol):
    """How one tensor of the merge is made.

    Attributes:
        name: What the recipe calls it.
        source: The paper.
        needs: "base" if the common base must be given, else empty.
        whole: Whether it must see a tensor whole; else it is given some rows at a time, as many as may
            be. One that draws random numbers must be.
        options: The options it knows, with their defaults.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def needs(self) -> str: ...
    @property
    def whole(self) -> bool: ...
    @property
    def options(self) -> Mapping[str, float]: ...

    def merge(
        self,
        long: torch.Tensor,
        short: torch.Tensor,
        base: torch.Tensor | None,
        options: Mapping[str, float],
        seed: int,
    ) -> torch.Tensor:
        """The merged tensor.

        Args:
            long: The Long parent's tensor, float32.
            short: The Short parent's, same shape.
            base: The base's, same shape; None if the method does not need it.
            options: All of the method's options.
            seed: Differs from tensor to tensor; the same for the same recipe.

        Returns:
            float32, same shape.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A `MergeMethod` made of a function."""

    name: str
    source: str
    needs: str
    whole: bool
    merge: Merge
    options: Mapping[str, float] = field(default_factory=dict)


_WEIGHTS = {"long": 0.5, "short": 0.5}
_WHOLE = {"long": 1.0, "short": 1.0}  # TIES takes a mean itself
_BUILT_IN = (
    Method("scalar", "plain interpolation", "", False, scalar, {"weight": 0.5}),
    Method("task_arithmetic", "arXiv 2212.04089", "base", False, through_peft("task_arithmetic"), _WEIGHTS),
    Method("ties", "arXiv 2306.01708", "base", True, through_peft("ties"), _WHOLE | {"density": 0.2}),
    Method("dare_linear", "arXiv 2311.03099", "base", True, through_peft("dare_linear"), _WEIGHTS | {"density": 0.5}),
    Method("dare_ties", "arXiv 2311.03099", "base", True, through_peft("dare_ties"), _WHOLE | {"density": 0.5}),
)


def methods() -> dict[str, MergeMethod]:
    """Every method by name: the built-in ones, and those that installed packages bring.

    Raises:
        RpamError: A package's method can't be loaded, or takes a name that is taken.
    """
    found: dict[str, MergeMethod] = {method.name: method for method in _BUILT_IN}
    for entry in entry_points(group=GROUP):
        try:
            method = entry.load()
        except Exception as error:  # someone else's code
            raise RpamError(f"merge method {entry.name} of {entry.value}: can't be loaded ({error}).") from None
        if entry.name in found or entry.name == OURS:
            raise RpamError(f"merge method {entry.name} of {entry.value}: that name is taken; rename its entry point.")
        found[entry.name] = method
    return found


def method_of(name: str, options: Mapping[str, float]) -> tuple[MergeMethod, dict[str, float]]:
    """The method of this name, and all its options.

    Raises:
        RpamError: The method, or an option, is unknown, or `density` is no share.
    """
    known = methods()
    if name not in known:
        raise RpamError(f"`merge.method` {name!r}: unknown; known are {', '.join([OURS, *known])}.")
    method = known[name]
    if strange := sorted(options.keys() - method.options.keys()):
        knows = ", ".join(method.options) or "none"
        raise RpamError(f"`merge.options.{strange[0]}`: {name} has no such option; it has {knows}.")
    chosen = {**method.options, **options}
    if not 0 < chosen.get("density", 1) <= 1:
        raise RpamError(f"`merge.options.density` {chosen['density']:g}: must be above 0 and at most 1.")
    return method, chosen
