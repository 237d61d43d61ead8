"""The fit as the RPAM release does it, its defects included: a yardstick, not a recommendation.

After what is known of that release (arXiv 2601.03506; none of its code). It differs from ours in all
of this, and a test holds each against ours:

- only prompts, padded to one length; the pads count in the distance and in the cosine;
- the pull is a plain sum of squares over questions, positions and values, so that its balance with
  the contrastive term moves with all three;
- the contrastive term is pooled over a batch of questions of one label;
- the negative is the other parent's layer on the *selected* parent's stream;
- one coefficient a weight, held in bfloat16 with its Adam state, without a box;
- each layer is fitted alone, from the bottom; embedding, final norm and head stay at the start.

The label-dependent template is left out: the calibration set has one neutral template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rpam_lite.fit.elements import elements_file, load_elements, save_elements
from rpam_lite.recipe import Release
from rpam_lite.streaming.capture import check_finite
from rpam_lite.streaming.codec import Pair
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.merged import merged_layer, merged_tensor, one_parent
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.stubs import LayerCall
from rpam_lite.streaming.weights import WeightSource

ALPHA_DTYPE = torch.bfloat16


@dataclass
class Stream:
    """One batch of questions of one label on its way up.

    Attributes:
        questions: Their numbers in the calibration set.
        selected: Parent that their label selects.
        call: Arguments of every layer.
        merged: The merged hidden states [questions, tokens, hidden].
        positive: The selected parent's.
        negative: What the other parent's next layer is fed: its own embedding, then `positive`.
    """

    questions: list[int]
    selected: str
    calls: list[LayerCall]
    merged: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


def padded_prompts(prompts: Sequence[torch.Tensor], tokens: int, pad: int) -> torch.Tensor:
    """Prompts cut or right-padded to `tokens`, int64 [questions, tokens]."""
    rows = torch.full((len(prompts), tokens), pad)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt[:tokens]
    return rows


def single_label_batches(is_long: Sequence[bool], size: int) -> list[list[int]]:
    """Questions in batches of at most `size`, each of one label."""
    batches = []
    for label in (True, False):
        own = [q for q, long in enumerate(is_long) if long == label]
        batches += [own[i : i + size] for i in range(0, len(own), size)]
    return batches


def loss_terms(
    merged: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pull and contrastive term of one batch, all of shape [questions, tokens, hidden].

    pull = sum (z - z+)^2;  CL = mean_i -log( e^(c_i/tau) / ( e^(c_i/tau) + sum_j e^(d_j/tau) ) ), with
    c and d the cosines of a question's whole flattened state with both.
    """
    pull = (merged - positive).square().sum()
    flat = merged.flatten(1)
    c = torch.nn.functional.cosine_similarity(flat, positive.flatten(1), dim=-1) / temperature
    d = torch.nn.functional.cosine_similarity(flat, negative.flatten(1), dim=-1) / temperature
    return pull, (torch.logaddexp(c, d.logsumexp(0)) - c).mean()


def fit_release(
    skeleton: Skeleton,
    source: WeightSource,
    ends: Ends,
    prompts: torch.Tensor,
    is_long: Sequence[bool],
    settings: Release,
    dtype: torch.dtype,
    folder: Path,
    on_layer: Callable[[str], None] = lambda note: None,
) -> list[dict[str, float]]:
    """Fit one coefficient a weight, layer by layer.

    Args:
        skeleton: The architecture.
        source: The decoder layers of both parents.
        ends: Their embeddings; all of `prompts` must be among its tokens.
        prompts: From `padded_prompts`.
        is_long: The labels.
        settings: The recipe's `fit.release` section.
        dtype: What the layers compute in.
        folder: Gets lambda (of the Long parent, as everywhere) of each layer as it is fitted. Layers that
            are there already are taken as they are.
        on_layer: Called after every layer with a short note.

    Returns:
        Of every layer, both terms summed over the first and over the last epoch.

    Raises:
        RpamError: A hidden state is inf or NaN.
    """
    streams = [
        _start(skeleton, ends, prompts[batch], batch, bool(is_long[batch[0]]), settings.start, dtype)
        for batch in single_label_batches(is_long, settings.batch)
    ]
    report = []
    for layer, pairs in source.sweep(range(skeleton.layers)):
        parents = {
            parent: merged_layer(pairs, {t: t for t in pairs}, one_parent(parent, skeleton.device), dtype)
            for parent in ("long", "short")
        }
        for stream in streams:
            other = "short" if stream.selected == "long" else "long"
            with torch.no_grad():
                stream.negative = skeleton.run_layer(layer, parents[other], stream.negative, stream.calls[layer])
                stream.positive = skeleton.run_layer(
                    layer, parents[stream.selected], stream.positive, stream.calls[layer]
                )
            check_finite(stream.positive, layer, stream.questions)
        names = skeleton.checkpoint_names(layer)
        if elements_file(folder, layer).exists():
            lambdas, log = load_elements(folder, layer)
        else:
            alphas, first, last = _fit_layer(skeleton, layer, pairs, streams, settings, dtype)
            lambdas = {names[t]: 1 - alpha.detach().float() for t, alpha in alphas.items()}
            log = {"layer": float(layer), **_named(first, "first"), **_named(last, "last")}
            save_elements(folder, layer, lambdas, log)
        report.append(log)
        here = {name: value.to(skeleton.device) for name, value in lambdas.items()}
        tensors = merged_layer(pairs, names, here.__getitem__, dtype)
        for stream in streams:
            with torch.no_grad():
                stream.merged = skeleton.run_layer(layer, tensors, stream.merged, stream.calls[layer])
            check_finite(stream.merged, layer, stream.questions)
            stream.negative = stream.positive
        on_layer(f"pull {log['pull_first']:.3g} -> {log['pull_last']:.3g}")
    return report


def _start(
    skeleton: Skeleton,
    ends: Ends,
    ids: torch.Tensor,
    questions: list[int],
    long: bool,
    start: float,
    dtype: torch.dtype,
) -> Stream:
    """A batch below the first layer, in all three streams."""
    pair = ends.embedding(ids)
    device = skeleton.device
    selected, other = ("long", "short") if long else ("short", "long")
    weights = [torch.tensor(1 - start, device=device), *(one_parent(p, device)("") for p in (selected, other))]
    merged, positive, negative = (skeleton.calls(merged_tensor(pair, weight, dtype)) for weight in weights)
    return Stream(questions, selected, merged[1], merged[0], positive[0], negative[0])


def _fit_layer(
    skeleton: Skeleton,
    layer: int,
    pairs: Mapping[str, Pair],
    streams: Sequence[Stream],
    settings: Release,
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], tuple[float, float], tuple[float, float]]:
    """Weights of the Short parent, and the terms of the first and of the last epoch."""
    decoded = {t: pair.decode(dtype) for t, pair in pairs.items()}
    alphas = {
        t: torch.full(short.shape, settings.start, dtype=ALPHA_DTYPE, device=short.device, requires_grad=True)
        for t, (short, _) in decoded.items()
    }
    optimizer = torch.optim.Adam(alphas.values(), lr=settings.learning_rate)
    epochs = []
    for _ in range(settings.epochs):
        sums = torch.zeros(2)
        for stream in streams:
            # W = L + alpha * (S - L) = S + (1 - alpha) * D
            tensors = {t: short + (1 - alphas[t].to(dtype)) * delta for t, (short, delta) in decoded.items()}
            states = skeleton.run_layer(layer, tensors, stream.merged, stream.calls[layer])
            pull, contrast = loss_terms(
                states.float(), stream.positive.float(), stream.negative.float(), settings.temperature
            )
            optimizer.zero_grad()
            (pull + settings.omega * contrast).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sums += torch.stack([pull, contrast]).detach().cpu()
        epochs.append((float(sums[0]), float(sums[1])))
    return alphas, epochs[0], epochs[-1]


def _named(terms: tuple[float, float], when: str) -> dict[str, float]:
    return {f"pull_{when}": terms[0], f"contrastive_{when}": terms[1]}
