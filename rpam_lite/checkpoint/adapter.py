"""A PEFT LoRA adapter over a base checkpoint, as a tensor source: nothing merged is written.

    W = W_base + (alpha / r) * B @ A        (alpha / sqrt(r) with rank-stabilized LoRA)

Each tensor is computed when asked for, in fp32, so that L - S of two adapters over one base, or of
an adapter and its base, is formed tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD
from rpam_lite.checkpoint.files import ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS, read_json
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError

_BLOCK = 256
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "trainable_token_indices",
    "layer_replication",
    "lora_bias",
    "alora_invocation_tokens",
)
# Ways to begin the training that take a part out of the base's weights: what is saved does not fit the base.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MERGE_FIRST = "merge the adapter into its base with peft first (merge_and_unload)"
_LORA = re.compile(r"^(.+)\.lora_([AB])\.weight$")


class AdapterSource:
    """A base checkpoint with a LoRA adapter applied on the fly.

    Args:
        base: The checkpoint that the adapter was trained on.
        folder: The adapter's folder: adapter_config.json and adapter_model.safetensors.

    Raises:
        RpamError: A file is missing or damaged, the adapter is no plain LoRA, or it does not fit the base.
    """

    as_stored = False

    def __init__(self, base: CheckpointSource, folder: Path) -> None:
        self.base = base
        self.adapter_config = read_json(folder / ADAPTER_CONFIG, "the adapter's config")
        self._refuse_other_kinds(folder)
        file = folder / ADAPTER_WEIGHTS
        try:
            with safe_open(str(file), framework="pt") as handle:
                tensors = {name.removeprefix(ADAPTER_PREFIX): handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RpamError(f"{file}: can't be read ({error}); copy or download the adapter again.") from None
        self._lora: dict[str, dict[str, torch.Tensor]] = {}
        self._replaced: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            match = _LORA.match(name)
            if match:
                self._lora.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
            else:
                self._replaced[name] = tensor
        self._refuse_what_has_no_place(tensors, file)
        for name, shape in [(n, self._product_shape(n, file)) for n in self._lora] + [
            (n, tuple(t.shape)) for n, t in self._replaced.items()
        ]:
            if name not in base.names() or base.shape(name) != shape:
                found = f"shape {base.shape(name)}" if name in base.names() else "no such tensor"
                raise RpamError(
                    f"{file}: has {name} of shape {shape}, the base {base.folder} has {found}; "
                    "the adapter was trained on another base: name that one under `parents.base`."
                )

    @property
    def config(self) -> dict[str, Any]:
        """The base's config."""
        return self.base.config

    @property
    def folder(self) -> Path:
        """The base's folder: config and tokenizer are its own."""
        return self.base.folder

    def names(self) -> list[str]:
        """Tensor names, sorted: the base's."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """float32 where the adapter changes the tensor, else as the base stores it."""
        return torch.float32 if name in self._lora or name in self._replaced else self.base.dtype(name)

    def get(self, name: str) -> torch.Tensor:
        """One tensor with the adapter applied."""
        if name in self._replaced:
            return self._replaced[name].float()
        return self.rows(name, 0, self.shape(name)[0]) if name in self._lora else self.base.get(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of one tensor."""
        if name in self._replaced:
            return self._replaced[name][start:stop].float()
        rows = self.base.rows(name, start, stop)
        if name not in self._lora:
            return rows
        up, down = (self._lora[name][part].float() for part in "BA")
        # In blocks at fixed places: a matrix product of other rows may differ in its last bits.
        first = start // _BLOCK * _BLOCK
        product = torch.cat([up[at : at + _BLOCK] @ down for at in range(first, stop, _BLOCK)])
        return rows.float() + self._scale(name) * product[start - first : stop - first]

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Compute one tensor into `out`."""
        if name in self._lora or name in self._replaced:
            out.copy_(self.get(name))
        else:
            self.base.read_into(name, out)

    def _scale(self, name: str) -> float:
        module = name.removesuffix(".weight")
        rank = self._lora[name]["A"].shape[0]
        patterns = self.adapter_config.get("alpha_pattern") or {}
        own = next((a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(self.adapter_config["lora_alpha"] if own is None else own)
        return alpha / (sqrt(rank) if self.adapter_config.get("use_rslora") else rank)

    def _product_shape(self, name: str, file: Path) -> tuple[int, ...]:
        pair = self._lora[name]
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2:
            raise RpamError(f"{file}: {name} needs lora_A and lora_B of two dimensions; copy the adapter again.")
        return pair["B"].shape[0], pair["A"].shape[1]

    def _refuse_other_kinds(self, folder: Path) -> None:
        config = self.adapter_config
        kind = config.get("peft_type")
        if kind != "LORA":
            raise RpamError(f"{folder / ADAPTER_CONFIG}: `peft_type` is {kind!r}; only LORA adapters can be merged.")
        for setting in _UNSUPPORTED:
            if config.get(setting):
                raise RpamError(
                    f"{folder / ADAPTER_CONFIG}: `{setting}` is {config[setting]!r}, which is not supported; "
                    f"{_MERGE_FIRST}."
                )
        start = str(config.get("init_lora_weights", "")).lower()
        if start.startswith(_CHANGES_THE_BASE):
            raise RpamError(
                f"{folder / ADAPTER_CONFIG}: `init_lora_weights` is {start!r}, which takes a part out of the base "
                "before it trains; save it as plain LoRA (with path_initial_model_for_weight_conversion), or "
                f"{_MERGE_FIRST}."
            )

    def _refuse_what_has_no_place(self, tensors: Iterable[str], file: Path) -> None:
        """Name what else than LoRA of linear layers and replaced tensors the adapter holds."""
        tied = bool(self.base.config.get("tie_word_embeddings"))
        for name in tensors:
            if "lora_embedding_" in name or name.endswith(".base_layer.weight"):
                what = "part of LoRA of an embedding"
            elif name.endswith(".base_layer.bias"):
                what = "trained biases (`bias`)"
            elif tied and name in (EMBEDDING, HEAD):
                what = "one side of an embedding and a head that the base ties together"
            else:
                continue
            raise RpamError(f"{file}: {name} is {what}, which is not supported; {_MERGE_FIRST}.")
