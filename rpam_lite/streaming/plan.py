"""What a capture and a fit will need, before anything is loaded.

All counts are bytes. On the CPU the device is the host: both share one budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from rpam_lite.recipe.fitting import CodecName
from rpam_lite.streaming.codec import bits
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import StoreName
from rpam_lite.streaming.weights import SLOTS, Residency

LBFGS_PAIRS = 20
# What the capture does not hold.
_OF_THE_FIT = (
    "layer inputs",
    "injected gradients",
    "gradient on its way down",
    "final states at target positions",
    "the fit's unknowns and their history",
    "parents' states of one layer",
)


@dataclass(frozen=True)
class ModelSize:
    """What the plan needs to know of the architecture.

    Attributes:
        layers: Decoder layers.
        layer_values: Parameters of the largest one.
        largest_tensor: Parameters of its largest tensor.
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP.
        vocabulary: Rows of embedding and head.
        stored: Bytes a parameter in the checkpoints.
        window: Positions that sliding attention sees; None where no layer slides.
        computed: Whether a parent is an adapter, whose layers are computed once and then read.
    """

    layers: int
    layer_values: int
    largest_tensor: int
    hidden: int
    intermediate: int
    vocabulary: int
    stored: int = 2
    window: int | None = None
    computed: bool = False


@dataclass(frozen=True)
class WorkSize:
    """What the plan needs to know of the calibration set.

    Attributes:
        tokens: All tokens.
        longest: Tokens of the longest question.
        kept: Positions whose hidden states are kept.
        targets: Positions whose next-token distribution is kept.
        distinct: Different tokens.
        top_k: Log-probabilities a target position.
        numbers: Unknowns of the fit.
        steps: How many steps it may take.
        fields: Whether a matrix's lambdas are formed one a weight.
    """

    tokens: int
    longest: int
    kept: int
    targets: int
    distinct: int
    top_k: int
    numbers: int = 0
    steps: int = 0
    fields: bool = False


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used; `device` is None where the layers run on the CPU."""

    device: int | None
    host: int
    disk: int


@dataclass(frozen=True)
class Way:
    """One way of working."""

    codec: CodecName
    residency: Residency
    store: StoreName
    micro_tokens: int
    chunk_rows: int
    keep_head: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """A way of working and what it takes.

    Attributes:
        way: The way.
        items: (what, where: device, host or disk, bytes).
        moved: Bytes brought to the computation for one joint step.
        resident: Bytes that Python and its libraries held when it was made; among the items.
    """

    way: Way
    items: tuple[tuple[str, str, int], ...]
    moved: int
    resident: int

    def total(self, place: str) -> int:
        """Expected peak of the device, the host or the disk."""
        return sum(size for _, where, size in self.items if where == place)


def model_size(skeleton: Skeleton, stored: int = 2) -> ModelSize:
    """Sizes of an architecture, from its config alone."""
    shapes = [skeleton.layer_tensors(i) for i in range(skeleton.layers)]
    return ModelSize(
        layers=skeleton.layers,
        layer_values=max(sum(prod(s) for s in layer.values()) for layer in shapes),
        largest_tensor=max(prod(s) for layer in shapes for s in layer.values()),
        hidden=skeleton.config.hidden_size,
        intermediate=skeleton.config.intermediate_size,
        vocabulary=skeleton.config.vocab_size,
        stored=stored,
        window=_window(skeleton.config),
    )


def _window(config: Any) -> int | None:
    """Positions that sliding attention sees, where a layer slides."""
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _history(work: WorkSize) -> int:
    """Bytes of the fit's unknowns: L-BFGS-B's pairs and 5 vectors in fp64; point and gradient of every step in fp32.

    The latter are what a resumed fit begins with.
    """
    return work.numbers * (8 * (2 * LBFGS_PAIRS + 5) + 2 * 4 * work.steps)


def plan_for(way: Way, model: ModelSize, work: WorkSize, on_cpu: bool, resident: int = 0) -> Plan:
    """What this way of working takes in the joint fit, and what the capture takes beyond that.

    Args:
        way: The way.
        model: The architecture.
        work: The calibration set.
        on_cpu: Whether the layers run on the CPU; the device is the host then.
        resident: Bytes that Python and its libraries hold before anything is loaded.
    """
    item = way.dtype.itemsize
    compute = "host" if on_cpu else "device"
    place: dict[str, str] = {"device": compute, "host": "host", "disk": "disk"}
    layer = int(2 * model.layer_values * (bits(way.codec) or 8 * model.stored) / 8)
    micro = max(min(way.micro_tokens, work.tokens), work.longest)
    full = work.tokens * model.hidden * item
    items: list[tuple[str, str, int]] = [("Python and its libraries", "host", resident)]
    if way.residency == "disk":
        if way.codec != "exact" or model.computed:
            items.append(("both parents' layers, encoded", "disk", layer * model.layers))
        items.append(("layers being read", "host", SLOTS * layer))
    else:
        items.append(("both parents' layers", place[way.residency], layer * model.layers))
        if way.residency == "host" and not on_cpu:
            items.append(("page-locked slots", "host", SLOTS * layer))
    if way.residency != "device" and not on_cpu:
        items.append(("layers on the device", compute, SLOTS * layer))
    # W and dloss/dW summed in fp32; then S, D (and lambda) of one tensor while they are decoded, or a micro-batch's
    # activations with dloss/dW of one tensor.
    at_work = model.layer_values * (item + 4)
    activations = micro * (16 * model.hidden + 6 * model.intermediate) * item + model.largest_tensor * item
    activations = max(activations, (3 if work.fields else 2) * 4 * model.largest_tensor)
    # The head comes when no decoder layer is at work: its chunk (S and L as stored, W, dloss/dW and its sum, or
    # S and D decoded) and its logits.
    rows, positions = min(way.chunk_rows, model.vocabulary), min(work.targets, micro)
    head = rows * model.hidden * (2 * model.stored + max(2 * item + 4, 3 * 4)) + 4 * positions * rows * 4
    items.append(("merged layer and its gradient", compute, at_work))
    items.append(("activations of a micro-batch", compute, activations))
    items.append(("head chunk and its logits, beyond that", compute, max(0, head - at_work - activations)))
    if on_cpu:
        # Of what comes and goes, the C library keeps about half for later.
        items.append(("freed memory not handed back", "host", max(head, at_work + activations) // 2))
    items.append(("layer inputs", place[way.store], full * (model.layers + 1)))
    items.append(("injected gradients", place[way.store], work.kept * model.hidden * item * model.layers))
    items.append(("gradient on its way down", place[way.store], full))
    items.append(("final states at target positions", "host", work.targets * model.hidden * (3 * item + 4)))
    items.append(("targets", "host", work.targets * work.top_k * (8 + 4)))
    items.append(("targets at work", compute, work.targets * work.top_k * (8 + 3 * 4)))
    items.append(("the fit's unknowns and their history", "host", _history(work)))
    items.append(("parents' states of one layer", "host", 2 * work.kept * model.hidden * 2))
    items.append(("embedding rows", "host", 2 * work.distinct * model.hidden * model.stored))
    if model.window is not None and work.longest > model.window:
        # The mask that all share, one that is made, and one in fp32 for the attention.
        items.append(("masks of sliding attention", compute, 6 * work.longest**2))
    # Both parents' streams, and their states, of which writing makes two copies.
    of_capture = 2 * full + 3 * 2 * work.kept * model.hidden * 2
    of_fit = sum(size for what, where, size in items if what in _OF_THE_FIT and where == "host")
    items.append(("streams and states of the capture, beyond that", "host", max(0, of_capture - of_fit)))
    if way.keep_head:
        items.append(("both parents' heads", compute, 2 * model.vocabulary * model.hidden * model.stored))
    items.append(("captured states", "disk", 2 * work.kept * model.hidden * 2 * model.layers))
    items.append(("streams of the capture", "disk", 2 * 2 * full))
    sweeps = 2 if way.residency == "disk" or (way.residency == "host" and not on_cpu) else 0
    moved = sweeps * layer * model.layers
    if not way.keep_head:
        moved += 2 * 2 * model.vocabulary * model.hidden * model.stored
    return Plan(way, tuple(i for i in items if i[2] > 0), moved, resident)
