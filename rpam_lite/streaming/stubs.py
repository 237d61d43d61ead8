"""What stands in the place of decoder layers while a model tells with which arguments it calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast


@dataclass(frozen=True)
class LayerCall:
    """What the model passes to one decoder layer beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Stopped(Exception):  # noqa: N818 - not an error
    """Ends a recording once the last layer's arguments are known."""


class Stub(torch.nn.Module):
    """Stands where a decoder layer stood: notes its arguments and hands the hidden states on."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the layer is no submodule: its meta tensors are none of the model's.
        object.__setattr__(self, "_held", (layer,))
        self.call: LayerCall | None = None
        self.seen: torch.Tensor | None = None
        self.replacement: torch.Tensor | None = None
        self.stops = False

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.call, self.seen = LayerCall(args, kwargs), hidden_states
        if self.stops:
            raise Stopped
        return hidden_states if self.replacement is None else self.replacement

    def __getattr__(self, name: str) -> Any:
        # Some models read `attention_type` and the like from the layer.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_held"][0], name)


class FinalStates(torch.nn.Module):
    """Stands where the decoder stood: what comes in are its final hidden states."""

    def forward(self, inputs_embeds: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)
