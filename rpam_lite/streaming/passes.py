"""One model of a pair, run one layer at a time: what passes through it, and the gradients of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from rpam_lite.streaming.capture import check_finite
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import LambdaOf, merged_layer, merged_tensor
from rpam_lite.streaming.next_token import head_gradient
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.store import ActivationStore, StoreName, open_store
from rpam_lite.streaming.stubs import LayerCall
from rpam_lite.streaming.weights import LayerPairs, WeightSource

OnInput = Callable[[str, torch.Tensor, torch.Tensor], None]
OutputsAt = Callable[[float], list[torch.Tensor]]  # lambda to every question's output [length, hidden]
Choose = Callable[[int, OutputsAt], float]
Gradients = tuple[int, int, dict[str, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Streamed:
    """One model: a pair at one lambda.

    Attributes:
        source: The decoder layers of both parents.
        ends: Their embeddings and heads.
        lambda_of: Lambda by tensor name.
        dtype: What the layers compute in.
    """

    source: WeightSource
    ends: Ends
    lambda_of: LambdaOf
    dtype: torch.dtype

    @property
    def skeleton(self) -> Skeleton:
        return self.source.skeleton

    def at(self, value: float) -> Streamed:
        """The same pair at one lambda for everything."""
        weight = torch.tensor(value, device=self.skeleton.device)
        return replace(self, lambda_of=lambda name: weight)

    def layer(self, layer: int, pairs: LayerPairs) -> dict[str, torch.Tensor]:
        """The layer's tensors by their names within it."""
        return merged_layer(pairs, self.skeleton.checkpoint_names(layer), self.lambda_of, self.dtype)

    def enter(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[LayerCall]]:
        """The first layer's input for right-padded token ids, and every layer's other arguments."""
        name = self.skeleton.embedding
        return self.skeleton.calls(merged_tensor(self.ends.embedding(ids), self.lambda_of(name), self.dtype))


@torch.no_grad()
def hidden_states(
    model: Streamed,
    token_ids: Sequence[torch.Tensor],
    batches: Sequence[Sequence[int]],
    on_input: OnInput | None = None,
    choose: Choose | None = None,
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Run questions through the model.

    Args:
        model: The model.
        token_ids: One int64 tensor a question.
        batches: The questions in micro-batches.
        on_input: Called with the checkpoint name of each linear layer's weight, its input
            [questions, length, in] and which of those positions are no pads, bool [questions, length].
        choose: Called before each decoder layer with its number and a function that gives the outputs which
            one lambda for all of the layer would have; gives that lambda. Without it, the model's own.

    Yields:
        A decoder layer's number, and its output for every question [length, hidden], on the host.

    Raises:
        RpamError: A hidden state is inf or NaN.
    """
    skeleton = model.skeleton
    padded = [pad_sequence([token_ids[q] for q in batch], batch_first=True) for batch in batches]
    lengths = [torch.tensor([len(token_ids[q]) for q in batch]) for batch in batches]
    real = [torch.arange(ids.shape[1]) < length.unsqueeze(1) for ids, length in zip(padded, lengths, strict=True)]
    streams, calls = [], []
    for ids in padded:
        first, own = model.enter(ids)
        streams.append(first.cpu())
        calls.append(own)

    def run(layer: int, tensors: dict[str, torch.Tensor], into: list[torch.Tensor]) -> list[torch.Tensor]:
        """The layer's outputs for every micro-batch, by question; `into` may be the streams themselves."""
        outputs = [torch.empty(0)] * len(token_ids)
        for b, batch in enumerate(batches):
            mask = real[b].to(skeleton.device)

            def see(name: str, inputs: torch.Tensor, mask: torch.Tensor = mask) -> None:
                if on_input is not None:
                    on_input(skeleton.checkpoint_name(layer, f"{name}.weight"), inputs, mask)

            with skeleton.linear_inputs(layer, see):
                output = skeleton.run_layer(layer, tensors, streams[b].to(skeleton.device), calls[b][layer])
            check_finite(output, layer, batch)
            into[b] = output.cpu()
            for row, q in enumerate(batch):
                outputs[q] = into[b][row, : len(token_ids[q])]
        return outputs

    def outputs_at(layer: int, pairs: LayerPairs, value: float) -> list[torch.Tensor]:
        return run(layer, model.at(value).layer(layer, pairs), [torch.empty(0)] * len(batches))

    for layer, pairs in model.source.sweep(range(skeleton.layers)):
        of_layer = model if choose is None else model.at(choose(layer, partial(outputs_at, layer, pairs)))
        tensors = of_layer.layer(layer, pairs)
        outputs = run(layer, tensors, streams)
        del tensors
        yield layer, outputs


@torch.no_grad()
def states_at(
    model: Streamed,
    token_ids: Sequence[torch.Tensor],
    positions: Sequence[torch.Tensor],
    batches: Sequence[Sequence[int]],
    kind: StoreName,
    scratch: Path,
) -> list[torch.Tensor]:
    """Run questions through the model for some of the last decoder layer's outputs.

    One layer's states of all questions are kept at a time, where the store keeps them.

    Args:
        model: The model.
        token_ids: One int64 tensor a question.
        positions: Of every question, int64 [kept], perhaps none.
        batches: The questions in micro-batches.
        kind: Of the store for what goes from layer to layer.
        scratch: Its folder, used by `disk`; empty again afterwards.

    Returns:
        The outputs [kept, hidden] by question, on the host.

    Raises:
        RpamError: A hidden state is inf or NaN, or the disk is full.
    """
    skeleton = model.skeleton
    padded = [pad_sequence([token_ids[q] for q in batch], batch_first=True) for batch in batches]
    shapes = [(*ids.shape, skeleton.config.hidden_size) for ids in padded]
    store = open_store(kind, scratch, shapes, model.dtype, skeleton.device)
    calls = []
    for b, ids in enumerate(padded):
        first, own = model.enter(ids)
        store.put(0, b, first)
        calls.append(own)
    for layer, pairs in model.source.sweep(range(skeleton.layers)):
        tensors = model.layer(layer, pairs)
        for b, batch in enumerate(batches):
            output = skeleton.run_layer(layer, tensors, store.get(0, b), calls[b][layer])
            check_finite(output, layer, batch)
            store.put(0, b, output)
        del tensors
    kept = [torch.empty(0)] * len(token_ids)
    for b, batch in enumerate(batches):
        states = store.get(0, b)
        for row, q in enumerate(batch):
            kept[q] = states[row, positions[q].to(states.device)].cpu()
    store.drop(0)
    return kept


def weight_gradients(
    model: Streamed, sequences: Sequence[torch.Tensor], starts: Sequence[int], inputs: ActivationStore
) -> Iterator[Gradients]:
    """Gradients of the mean next-token cross-entropy of each sequence, from the last decoder layer to the first.

    Args:
        model: The model.
        sequences: Token ids, int64 [length] each.
        starts: Position of each sequence's first token that is to be predicted, at least 1.
        inputs: Keeps the layers' inputs; empty again afterwards.

    Yields:
        A decoder layer's number, a sequence's, the layer's tensors and their gradients, both by their
        names in the checkpoint; gradients in the type that the layers compute in.

    Raises:
        RpamError: A hidden state is inf or NaN.
    """
    skeleton = model.skeleton
    calls = []
    for s, ids in enumerate(sequences):
        first, own = model.enter(ids.unsqueeze(0))
        inputs.put(0, s, first)
        calls.append(own)
    with torch.no_grad():
        for layer, pairs in model.source.sweep(range(skeleton.layers)):
            tensors = model.layer(layer, pairs)
            for s in range(len(sequences)):
                output = skeleton.run_layer(layer, tensors, inputs.get(layer, s), calls[s][layer])
                check_finite(output, layer, [s])
                inputs.put(layer + 1, s, output)
            del tensors
    upstream = _from_the_head(model, sequences, starts, inputs)
    inputs.drop(skeleton.layers)
    for layer, pairs in model.source.sweep(range(skeleton.layers - 1, -1, -1)):
        tensors = {t: w.requires_grad_() for t, w in model.layer(layer, pairs).items()}
        named = {skeleton.checkpoint_name(layer, t): w.detach() for t, w in tensors.items()}
        for s in range(len(sequences)):
            below = inputs.get(layer, s).detach().requires_grad_()
            output = skeleton.run_layer(layer, tensors, below, calls[s][layer])
            wanted = [below, *tensors.values()]
            found = torch.autograd.grad(output, wanted, upstream[s].to(output))
            upstream[s] = found[0].cpu()
            yield layer, s, named, dict(zip(named, found[1:], strict=True))
        inputs.drop(layer)


def _from_the_head(
    model: Streamed, sequences: Sequence[torch.Tensor], starts: Sequence[int], inputs: ActivationStore
) -> list[torch.Tensor]:
    """Gradient of each sequence's loss with respect to the last layer's output [1, length, hidden], on the host."""
    last = model.skeleton.layers
    states = [inputs.get(last, s).cpu() for s in range(len(sequences))]
    read = [state[0, start - 1 : -1] for state, start in zip(states, starts, strict=True)]
    targets = [ids[start:].unsqueeze(1) for ids, start in zip(sequences, starts, strict=True)]
    found = head_gradient(
        model.ends,
        read,
        targets,
        lambda s, logprobs, entropy: -logprobs.mean(),
        model.lambda_of,
        lambda name, of_lambda: None,
        model.dtype,
    )
    upstream = [torch.zeros_like(state) for state in states]
    for whole, part, start in zip(upstream, found, starts, strict=True):
        whole[0, start - 1 : -1] = part
    return upstream
