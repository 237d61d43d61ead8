"""The merge methods that a recipe can name: `merge: {method: ties, options: {density: 0.3}}`.

A method is a function of the parents' tensors of one name, in fp32. Others plug in through the
entry-point group `rpam_lite.merge_methods`: each entry is an object with the attributes of `MergeMethod`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol

import torch

from rpam_lite.errors import RpamError
from rpam_lite.merge import activations, qa_merging, sensitivity
from rpam_lite.merge.models import Measure, Merge, Options, Tensors
from rpam_lite.merge.task_vectors import scalar, through_peft
from rpam_lite.merge.wudi import wudi
from rpam_lite.recipe import OURS

GROUP = "rpam_lite.merge_methods"
# Options that count something, and options that must be above 0.
_COUNTS = ("bins", "sequences", "tokens", "samples", "steps")
_SHARES = ("density", "share")
_POSITIVE = (*_COUNTS, *_SHARES, "temperature", "learning_rate", "beta")


class MergeMethod(Protocol):
    """How one tensor of the merge is made.

    Attributes:
        name: What the recipe calls it.
        source: The paper's number on arXiv, or where else it is described.
        needs: Of "base" (the common base must be given) and "capture" (the calibration set).
        whole: Whether it must see a tensor whole; else it is given some rows at a time, as many as may
            be. One that draws random numbers must be.
        options: The options it knows, with their defaults.
        measure: What it measures on the models before it merges, by tensor name; None for nothing.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def whole(self) -> bool: ...
    @property
    def options(self) -> Options: ...
    @property
    def measure(self) -> Measure | None: ...

    def merge(self, tensors: Tensors, options: Options) -> torch.Tensor:
        """The merged tensor, float32, of the parents' tensors of one name; `options` are all of them."""
        ...


@dataclass(frozen=True)
class Method:
    """A `MergeMethod` made of functions."""

    name: str
    source: str
    merge: Merge
    options: Mapping[str, float] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    whole: bool = False
    measure: Measure | None = None


_BASE, _BOTH = frozenset({"base"}), frozenset({"base", "capture"})
_WEIGHTS = {"long": 0.5, "short": 0.5}
_WHOLE = {"long": 1.0, "short": 1.0}  # TIES takes a mean itself
_TIES = _WHOLE | {"density": 0.2}
_TASK_ARITHMETIC, _TIES_MERGE = through_peft("task_arithmetic"), through_peft("ties")
_BUILT_IN = (
    Method("scalar", "arXiv 2510.10977", scalar, {"weight": 0.5}),
    Method("task_arithmetic", "arXiv 2212.04089", _TASK_ARITHMETIC, _WEIGHTS, _BASE),
    Method("ties", "arXiv 2306.01708", _TIES_MERGE, _TIES, _BASE, whole=True),
    Method(
        "dare_linear",
        "arXiv 2311.03099",
        through_peft("dare_linear"),
        _WEIGHTS | {"density": 0.5},
        _BASE,
        whole=True,
    ),
    Method("dare_ties", "arXiv 2311.03099", through_peft("dare_ties"), _WHOLE | {"density": 0.5}, _BASE, whole=True),
    Method("wudi", "arXiv 2503.08099", wudi, {"steps": 300, "learning_rate": 1e-5}, _BASE, whole=True),
    Method(
        "aim",
        "arXiv 2502.02421",
        activations.activation_informed(_TASK_ARITHMETIC),
        _WEIGHTS | {"omega": 0.4},
        _BOTH,
        measure=activations.mean_absolute_inputs,
    ),
    Method(
        "aim_ties",
        "arXiv 2502.02421",
        activations.activation_informed(_TIES_MERGE),
        _TIES | {"omega": 0.4},
        _BOTH,
        whole=True,
        measure=activations.mean_absolute_inputs,
    ),
    Method(
        "acm",
        "arXiv 2505.14009",
        activations.weighted_task_vectors,
        {"temperature": 0.7, "bins": 64},
        _BOTH,
        measure=activations.mutual_informations,
    ),
    Method(
        "react",
        "arXiv 2511.10943",
        activations.corrected,
        {"weight": 0.5, "long": 0.7, "beta": 0.1, "strength": 0.3},
        frozenset({"capture"}),
        whole=True,
        measure=activations.corrections,
    ),
    Method(
        "qa_merging",
        "arXiv 2601.03506",
        qa_merging.merged_and_turned,
        {
            "weight": 0.5,
            "share": 0.3,
            "contrast": 1.0,
            "temperature": 0.1,
            "long": 0.7,
            "beta": 0.1,
            "strength": 0.3,
        },
        frozenset({"capture"}),
        whole=True,
        measure=qa_merging.lambdas_and_turns,
    ),
    Method(
        "fim",
        "arXiv 2603.21705",
        sensitivity.fisher_merge,
        {"sequences": 8, "tokens": 64, "density": 0.2, "gate": 0.7, "drift": 0.05},
        whole=True,
        measure=sensitivity.fisher_weights,
    ),
    Method(
        "sens",
        "arXiv 2502.12420",
        sensitivity.short_plus_share,
        {"weight": 0.7, "temperature": 2.0, "samples": 100},
        frozenset({"capture"}),
        measure=sensitivity.sensitivity_weights,
    ),
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
        RpamError: The method, or an option, is unknown, or a value is none that it can have.
    """
    known = methods()
    if name not in known:
        raise RpamError(f"`merge.method` {name!r}: unknown; known are {', '.join([OURS, *known])}.")
    method = known[name]
    if strange := sorted(options.keys() - method.options.keys()):
        knows = ", ".join(method.options) or "none"
        raise RpamError(f"`merge.options.{strange[0]}`: {name} has no such option; it has {knows}.")
    chosen = {**method.options, **options}
    for option, value in chosen.items():
        whose = f"`merge.options.{option}` {value:g}"
        if not math.isfinite(value) or (option in _POSITIVE and value <= 0):
            raise RpamError(f"{whose}: must be {'above 0' if option in _POSITIVE else 'a finite number'}.")
        if option in _SHARES and value > 1:
            raise RpamError(f"{whose}: must be above 0 and at most 1.")
        if option in _COUNTS and (value != int(value) or value < 2):
            raise RpamError(f"{whose}: must be a whole number of at least 2.")
    return method, chosen
