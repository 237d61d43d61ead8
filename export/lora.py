"""The merge as a PEFT LoRA adapter over one parent: the best rank-r part of merged minus parent.

    W - P = U diag(s) V',    B = U_r sqrt(s_r),  A = sqrt(s_r) V_r',    lora_alpha = r

Decoder layers' matrices become LoRA pairs, norms are kept whole. Embedding, head and biases have no
place in such an adapter; what they would have changed counts as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from rpam_lite.checkpoint.files import ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS, whole_folder, write_json
from rpam_lite.checkpoint.write import copy_tokenizer
from rpam_lite.errors import RpamError

ENERGY = "energy.json"  # also the mark of an adapter that may be replaced


@dataclass(frozen=True)
class Kept:
    """Energy (squared Frobenius norm) of one tensor's difference, and how much of it the adapter holds."""

    name: str
    energy: float
    kept: float

    @property
    def share(self) -> float:
        return self.kept / self.energy if self.energy else 1.0


def write_lora(
    names: Iterable[str],
    delta_of: Callable[[str], torch.Tensor],
    tensor_of: Callable[[str], torch.Tensor],
    base: str,
    tokenizer: Path,
    rank: int,
    floor: float,
    folder: Path,
    step: Callable[[str], None] = lambda note: None,
) -> list[Kept]:
    """Write adapter_config.json, adapter_model.safetensors, energy.json and the merge's tokenizer.

    Args:
        names: All tensors of the model.
        delta_of: Merged minus parent by name, float32.
        tensor_of: The merged tensor by name, for norms.
        base: Name of the parent, for the adapter's config.
        tokenizer: Folder whose tokenizer and chat template the merge has.
        rank: Of every LoRA pair.
        floor: Share of all energy that must be kept.
        folder: Final name; absent if the adapter is refused.
        step: Called after each tensor.

    Returns:
        What is kept of every tensor.

    Raises:
        RpamError: Less than `floor` of the energy is kept, or `folder` holds something else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / ENERGY).exists())):
        raise RpamError(f"{folder}: is there already and no adapter of ours; move it away or choose another folder.")
    tensors: dict[str, torch.Tensor] = {}
    kept: list[Kept] = []
    targets, norms = set(), set()
    for name in names:
        delta = delta_of(name)
        energy, module = float(delta.double().square().sum()), name.removesuffix(".weight")
        in_layer = ".layers." in name and name.endswith(".weight")
        if in_layer and delta.ndim == 2:
            up, down, values = _best(delta, rank)
            tensors[f"{ADAPTER_PREFIX}{module}.lora_B.weight"] = up
            tensors[f"{ADAPTER_PREFIX}{module}.lora_A.weight"] = down
            targets.add(module.split(".")[-1])
            kept.append(Kept(name, energy, min(energy, float(values.double().square().sum()))))
        elif delta.ndim == 1 and name.endswith("norm.weight"):
            tensors[f"{ADAPTER_PREFIX}{name}"] = tensor_of(name)
            norms.add(module.split(".")[-1])
            kept.append(Kept(name, energy, energy))
        else:
            kept.append(Kept(name, energy, 0.0))
        step(name)
    total = sum(k.energy for k in kept)
    share = sum(k.kept for k in kept) / total if total else 1.0
    if share < floor:
        worst = sorted(kept, key=lambda k: k.energy - k.kept, reverse=True)[0]
        raise RpamError(
            f"{folder}: rank {rank} keeps {100 * share:.1f} % of the difference's energy, below {100 * floor:.0f} %; "
            f"most is lost in {worst.name} ({100 * worst.share:.1f} % kept). Raise --rank, or lower --floor if that "
            "will do."
        )
    with whole_folder(folder) as part:
        save_file({n: t.contiguous() for n, t in tensors.items()}, part / ADAPTER_WEIGHTS, {"format": "pt"})
        copy_tokenizer(tokenizer, part)
        _write_config(part, base, rank, sorted(targets), sorted(norms))
        told = {k.name: {"energy": k.energy, "kept": k.share} for k in kept}
        write_json(part / ENERGY, {"version": 1, "rank": rank, "kept": share, "tensors": told})
    return kept


def _best(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """B [rows, rank], A [rank, columns] and the singular values that they keep, float32."""
    left, values, right = torch.linalg.svd(delta.float(), full_matrices=False)
    root = values[:rank].sqrt()
    # A matrix of a smaller rank is filled up with zeros: peft wants one rank everywhere.
    missing = rank - len(root)
    up = torch.nn.functional.pad(left[:, : len(root)] * root, (0, missing))
    down = torch.nn.functional.pad(root.unsqueeze(1) * right[: len(root)], (0, 0, 0, missing))
    return up, down, values[:rank]


def _write_config(folder: Path, base: str, rank: int, targets: list[str], norms: list[str]) -> None:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": norms,
    }
    write_json(folder / ADAPTER_CONFIG, config)
