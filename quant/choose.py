"""Which quantization type: the best that fits a memory, or the smallest within a loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from quant.gguf import NEED_IMATRIX, Settings, Size, quantization_types, quantize
from quant.memory import ContextMemory
from rpam_lite.errors import RpamError

# K, legacy and IQ types; ternary and microscaling ones are for models trained to them.
_GENERAL = re.compile(r"^(Q[2-8]_(K|0|1)|IQ\d)")
_UNUSED = frozenset({"Q2_0"})
# How many of the largest types that fit are compared by their divergence.
CANDIDATES = 3

Divergence = Callable[[Path], float]


def general_types(with_imatrix: bool) -> list[str]:
    """Types for any model; without an importance matrix those that do not need one."""
    names = [name for name in quantization_types() if _GENERAL.match(name) and name not in _UNUSED]
    return [name for name in names if with_imatrix or name not in NEED_IMATRIX]


def largest_that_fit(told: Mapping[str, Size], memory: ContextMemory, budget: float) -> list[str]:
    """Types whose weights, cache and compute buffer fit, the largest first.

    Args:
        told: Sizes by type.
        memory: Of the context.
        budget: In MiB.

    Raises:
        RpamError: None fits; what would is said.
    """
    fitting = sorted((n for n in told if told[n].mib + memory.total <= budget), key=lambda n: -told[n].mib)
    if not fitting:
        smallest = min(told, key=lambda n: told[n].mib)
        needed = told[smallest].mib + memory.total
        raise RpamError(
            f"--fit: nothing fits {budget:.0f} MiB; the smallest, {smallest}, needs {needed:.0f} MiB, of which "
            f"{memory.cache:.0f} are the cache. Lower --context, or set --cache-type Q8_0."
        )
    return fitting


def best_that_fits(
    source: Path, folder: Path, fitting: list[str], settings: Settings, divergence: Divergence
) -> tuple[str, dict[str, float]]:
    """Of the largest types that fit the one with the smallest divergence.

    Args:
        source: The unquantized file.
        folder: Where candidates are written, as TYPE.gguf.
        fitting: Types, the largest first.
        settings: How to quantize.
        divergence: KL divergence of a file to the source, in nats.

    Returns:
        The type, and the divergence of every candidate.
    """
    found = {}
    for name in fitting[:CANDIDATES]:
        found[name] = _measured(source, folder, name, settings, divergence)
        _keep_only(folder, min(found, key=lambda n: found[n]))
    return min(found, key=lambda n: found[n]), found


def smallest_within(
    source: Path, folder: Path, told: Mapping[str, Size], settings: Settings, divergence: Divergence, budget: float
) -> tuple[str, dict[str, float]]:
    """The smallest type within a divergence, found by halving the list of types by size.

    Divergence falls with size up to small exceptions, so that a smaller type than the one found may
    exist next to it; every one that was measured is told.

    Raises:
        RpamError: Not even the largest type is within it.
    """
    names = sorted(told, key=lambda n: told[n].mib)
    found: dict[str, float] = {}

    def within(name: str) -> bool:
        found[name] = _measured(source, folder, name, settings, divergence)
        return found[name] <= budget

    low, high = 0, len(names) - 1
    if not within(names[high]):
        raise RpamError(
            f"--budget-kld {budget:g}: even {names[high]} is {found[names[high]]:.3g} nats away from the "
            "unquantized file; allow more, or name types of more bits."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(names[middle]) else (middle + 1, high)
        _keep_only(folder, names[high])
    return names[high], found


def _measured(source: Path, folder: Path, name: str, settings: Settings, divergence: Divergence) -> float:
    file = folder / f"{name}.gguf"
    quantize(source, file, name, settings)
    return divergence(file)


def _keep_only(folder: Path, name: str) -> None:
    """Candidates are as large as models: all but the best so far go at once."""
    for file in folder.glob("*.gguf"):
        if file.stem != name:
            file.unlink()
