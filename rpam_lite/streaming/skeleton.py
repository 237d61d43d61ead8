"""One decoder layer of any causal LM as a pure function of its tensors.

The model is built without weights (on the meta device). Each decoder layer is replaced by a stub
that notes with which arguments the model calls it, so that the real layer can be run later, alone,
with exactly those: the right attention mask, the right rotary tables. Nothing here knows an
architecture by name, except to refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoConfig, AutoModelForCausalLM

from rpam_lite.errors import RpamError, one_line
from rpam_lite.streaming.stubs import FinalStates, LayerCall, Stopped, Stub

# Settings that make a layer read more than the residual stream.
_CROSS_LAYER_SETTINGS = {
    "num_kv_shared_layers": "layers share keys and values",
    "hidden_size_per_layer_input": "layers read an input of their own",
}


class Skeleton:
    """A causal LM without weights.

    Args:
        config: Folder with config.json, or a loaded config.
        device: Where rotary tables and masks are made, and where the layers will run.

    Attributes:
        layers: Number of decoder layers.
        embedding: Name of the embedding's tensor, as in the checkpoint.
        head: Name of the output head's tensor; the embedding's if they are tied.
        tail: Names of the other tensors outside the layers (the final norm).

    Raises:
        RpamError: The architecture is unknown, or a layer depends on more than the hidden states.
    """

    def __init__(self, config: Path | Any, device: torch.device | str = "cpu") -> None:
        self.config = load_config(config) if isinstance(config, Path) else config
        self.device = torch.device(device)
        _refuse_cross_layer(self.config)
        try:
            with torch.device("meta"):
                self._model = AutoModelForCausalLM.from_config(self.config, attn_implementation="sdpa").eval()
        except Exception as error:  # transformers raises whatever its parts raise
            raise RpamError(f"{self._name}: transformers can't build it from its config ({one_line(error)}).") from None
        decoder = self._model.get_decoder()
        if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
            raise RpamError(f"{self._name}: has no list of decoder layers; only decoder-only models can be streamed.")
        self._layers = list(decoder.layers)
        if buffers := [name for name, _ in self._layers[0].named_buffers()]:
            raise RpamError(f"{self._name}: its decoder layers hold buffers ({', '.join(buffers)}); not supported.")
        if type(self._model.get_input_embeddings()) is not torch.nn.Embedding:
            raise RpamError(f"{self._name}: its embedding does more than look rows up; not supported.")
        names = {id(module): name for name, module in self._model.named_modules()}
        self.layer_prefix = names[id(decoder.layers)]
        self.embedding = names[id(self._model.get_input_embeddings())] + ".weight"
        self.head = names[id(self._model.get_output_embeddings())] + ".weight"
        outside = {n: tuple(p.shape) for n, p in self._model.named_parameters() if not n.startswith(self.layer_prefix)}
        self.tail = [n for n in outside if n not in (self.embedding, self.head)]
        self._head_parameter = self.head
        if self.config.tie_word_embeddings:
            self.head = self.embedding
        self._outside = {n: outside[n] for n in dict.fromkeys([self.embedding, self.head, *self.tail])}
        self._masks: list[torch.Tensor] = []
        self._stubs = [Stub(layer) for layer in self._layers]
        decoder.layers = torch.nn.ModuleList(self._stubs)
        self._decoder = decoder
        _rebuild_buffers(decoder, self.config, self.device, self._name)
        # What remains is the head, fed with final states.
        setattr(self._model, self._model.base_model_prefix, FinalStates())
        self._run_once()

    def _run_once(self) -> None:
        """Run two positions through one layer without values, the norm and the head: what can't is refused by name."""
        width = self._outside[self.embedding][-1]
        try:
            first, calls = self.calls(torch.zeros(1, 2, width, device=self.device))
            tensors = {name: torch.empty(shape, device="meta") for name, shape in self.layer_tensors(0).items()}
            args, kwargs = tree_map(_on_meta, (calls[0].args, calls[0].kwargs))
            output = self.run_layer(0, tensors, _on_meta(first), LayerCall(args, kwargs))
            tail = {name: torch.zeros(self._outside[name], device=self.device) for name in self.tail}
            normed = self.final_norm(first[0], tail)
            logits = self.logits(normed, torch.zeros(3, *self._outside[self.head][1:], device=self.device))
            right = output.shape == first.shape and logits.shape == (2, 3)
            why = f"its parts give shapes {tuple(output.shape)} and {tuple(logits.shape)}"
        except RpamError:
            raise
        except Exception as error:  # transformers raises whatever its parts raise
            right, why = False, one_line(error)
        if not right:
            raise RpamError(f"{self._name}: can't be run one layer at a time ({why}); such models are not supported.")

    @property
    def layers(self) -> int:
        return len(self._layers)

    @property
    def _name(self) -> str:
        return str(self.config.model_type)

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's tensors, by their names within the layer."""
        return {name: tuple(p.shape) for name, p in self._layers[layer].named_parameters()}

    def checkpoint_name(self, layer: int, tensor: str) -> str:
        """Name in the checkpoint of a layer's tensor."""
        return f"{self.layer_prefix}.{layer}.{tensor}"

    def checkpoint_names(self, layer: int) -> dict[str, str]:
        """Names in the checkpoint of all of one layer's tensors, by their names within the layer."""
        return {tensor: self.checkpoint_name(layer, tensor) for tensor in self.layer_tensors(layer)}

    @property
    def outside(self) -> list[str]:
        """Names of the tensors that belong to no decoder layer: embedding, head (once, if they are one), the rest."""
        return list(self._outside)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by their names in the checkpoint."""
        layers = {self.checkpoint_name(i, n): s for i in range(self.layers) for n, s in self.layer_tensors(i).items()}
        return layers | self._outside

    def calls(self, embedded: torch.Tensor) -> tuple[torch.Tensor, list[LayerCall]]:
        """The first layer's input and every layer's other arguments, for right-padded questions.

        With causal attention no real position sees a pad on its right, so there is no padding mask.

        Args:
            embedded: Embedding rows [questions, length, hidden]; gradients pass through.
        """
        for stub in self._stubs:
            stub.call = stub.replacement = None
        self._stubs[-1].stops = True
        try:
            self._decoder(inputs_embeds=embedded, use_cache=False)
        except Stopped:
            pass
        finally:
            self._stubs[-1].stops = False
        calls = []
        shared = partial(self._from_shared, {})
        for i, stub in enumerate(self._stubs):
            if stub.call is None or (i > 0 and stub.seen is not self._stubs[i - 1].seen):
                raise RpamError(
                    f"{self._name}: decoder layer {i} is not called with the output of the layer before it; "
                    "such models can't be run one layer at a time."
                )
            calls.append(LayerCall(*tree_map(shared, (stub.call.args, stub.call.kwargs))))
        first = self._stubs[0].seen
        for stub in self._stubs:
            stub.call = stub.seen = None
        assert first is not None
        return first, calls

    def share_masks(self, length: int) -> None:
        """Make the masks of a sequence of so many tokens, once: those of shorter ones become views of them.

        Masks of sliding attention take `length` squared bytes for every question otherwise.
        """
        self._masks = []
        width = self._outside[self.embedding][-1]
        _, calls = self.calls(torch.zeros(1, 1, width, device=self.device).expand(1, length, -1))
        found = {id(value): value for call in calls for value in tree_leaves(call.kwargs) if _is_mask(value, length)}
        self._masks = list(found.values())

    def _from_shared(self, seen: dict[int, torch.Tensor], value: Any) -> Any:
        """A shared mask that says the same, in the place of a mask; `seen` holds those of the same call."""
        if not isinstance(value, torch.Tensor) or not value.ndim or not _is_mask(value, value.shape[-1]):
            return value
        if id(value) not in seen:
            length = value.shape[-1]
            views = [mask[..., :length, :length] for mask in self._masks if mask.shape[-1] >= length]
            same = (view for view in views if torch.equal(view.expand_as(value), value))
            seen[id(value)] = next(same, value)
        return seen[id(value)]

    def run_layer(
        self, layer: int, tensors: Mapping[str, torch.Tensor], hidden: torch.Tensor, call: LayerCall
    ) -> torch.Tensor:
        """Output of one decoder layer.

        Args:
            layer: Its number, from 0.
            tensors: Its tensors, by their names within the layer.
            hidden: Its input [questions, length, hidden].
            call: Its other arguments, from `calls` on questions of the same number and length.

        Returns:
            [questions, length, hidden].
        """
        output = torch.func.functional_call(self._layers[layer], dict(tensors), (hidden, *call.args), call.kwargs)
        states: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return states

    @contextmanager
    def linear_inputs(self, layer: int, see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
        """Within it, `see` gets the name (within the layer) and the input of every linear layer that runs."""
        hooks = [
            module.register_forward_pre_hook(partial(_tell, see, name))
            for name, module in self._layers[layer].named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def final_norm(self, hidden: torch.Tensor, tail: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the decoder does after its last layer.

        Args:
            hidden: Outputs of the last decoder layer [positions, hidden].
            tail: The tensors named by `tail`.

        Returns:
            [positions, hidden].
        """
        states = hidden.unsqueeze(0)
        self._stubs[-1].replacement = states
        prefix = self.layer_prefix.removesuffix("layers")
        own = {name.removeprefix(prefix): tensor for name, tensor in tail.items()}
        try:
            output = torch.func.functional_call(
                self._decoder, own, kwargs={"inputs_embeds": states, "use_cache": False}
            )
        finally:
            for stub in self._stubs:
                stub.call = stub.seen = stub.replacement = None
        normed: torch.Tensor = output.last_hidden_state[0]
        return normed

    def logits(self, normed: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Next-token logits, with all scaling that the model applies to them.

        Args:
            normed: Hidden states after the final norm [positions, hidden].
            head: The output head, or some of its rows [rows, hidden].

        Returns:
            [positions, rows].
        """
        arguments = {"inputs_embeds": normed.unsqueeze(0), "use_cache": False}
        output = torch.func.functional_call(self._model, {self._head_parameter: head}, kwargs=arguments)
        logits: torch.Tensor = output.logits[0]
        return logits


def _is_mask(value: Any, length: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.shape[-2:] == (length, length)


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _tell(see: Callable[[str, torch.Tensor], None], name: str, module: torch.nn.Module, args: Any) -> None:
    see(name, args[0])


def load_config(folder: Path) -> Any:
    """The model's config.

    Raises:
        RpamError: It is missing, or this transformers release does not know the architecture.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        raise RpamError(f"{folder}: its config can't be used ({one_line(error, 300)}).") from None


def _refuse_cross_layer(config: Any) -> None:
    for setting, why in _CROSS_LAYER_SETTINGS.items():
        if getattr(config, setting, None):
            raise RpamError(
                f"{config.model_type}: can't be run one layer at a time, because its {why} "
                f"(`{setting}` is {getattr(config, setting)} in its config)."
            )


def _rebuild_buffers(decoder: torch.nn.Module, config: Any, device: torch.device, name: str) -> None:
    """Make the modules that own computed buffers (rotary tables) again on a real device."""
    for child_name, child in list(decoder.named_children()):
        if child_name != "layers" and any(b.is_meta for b in child.buffers()):
            try:
                setattr(decoder, child_name, type(child)(config=config).to(device))
            except TypeError:
                raise RpamError(f"{name}: its module {child_name} can't be built alone; not supported.") from None
