"""The terms on next-token distributions: what of the merge's head they read, and their values."""

from __future__ import annotations

import torch

from rpam_lite.fit import objective
from rpam_lite.fit.batches import MicroBatch
from rpam_lite.recipe import Fit
from rpam_lite.streaming.activations import Targets


def tokens_read(batch: MicroBatch, settings: Fit) -> torch.Tensor:
    """Tokens whose log-probabilities the terms read at every target position, int64 [targets, read].

    The selected parent's k; behind them, if the contrast is wanted, the other parent's k (0 but where an answer
    begins); behind these, if the likelihood is wanted, the response token that follows.
    """
    parts = [batch.targets.ids]
    if settings.output_contrast_weight != 0:
        parts.append(torch.zeros_like(batch.targets.ids).index_copy_(0, batch.decisions, batch.other.ids))
    if settings.likelihood_weight != 0:
        parts.append(batch.next_ids.clamp_min(0).unsqueeze(1))
    return torch.cat(parts, dim=1)


def output_terms(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch, settings: Fit) -> torch.Tensor:
    """KL, output contrast, negative log-likelihood and entropy, summed over a micro-batch with its shares, [4].

    A term of weight 0 is 0: what it needs was not read.

    Args:
        logprobs: Of the merged model at `tokens_read`, float32 [targets, read].
        entropy: Of its whole next-token distributions, in nats, float32 [targets]; read if `entropy_weight` is not 0.
        batch: The micro-batch.
        settings: The recipe's `fit` section.
    """
    shares, rows = batch.shares.to(logprobs), batch.target_rows.to(logprobs.device)
    weights, first = batch.target_weights.to(logprobs), batch.decisions.to(logprobs.device)
    k = batch.targets.ids.shape[1]

    def by_question(by_position: torch.Tensor) -> torch.Tensor:
        return objective.sum_by_question(weights * by_position, rows, len(shares))

    def mean(by_position: torch.Tensor) -> torch.Tensor:
        return (shares * by_question(by_position)).sum()

    divergence = _divergence(logprobs[:, :k], batch.targets)
    nothing = logprobs.sum() * 0
    kl = nothing
    if settings.kl_weight != 0:
        # An answer that goes wrong early would count for all that follows: what is lost is one answer, not more.
        answers = by_question(divergence)
        kl = (shares * (answers.log1p() if settings.form == "execution" else answers)).sum()
    contrast = likelihood = uncertainty = nothing
    if settings.output_contrast_weight != 0:
        to_other = _divergence(logprobs[first, k : 2 * k], batch.other)
        contrast = (shares * objective.output_contrast(divergence[first], to_other, settings.output_temperature)).sum()
    if settings.likelihood_weight != 0:
        likelihood = mean(-logprobs[:, -1] * (batch.next_ids >= 0).to(logprobs))
    if settings.entropy_weight != 0:
        uncertainty = mean(entropy)
    return torch.stack([kl, contrast, likelihood, uncertainty])


def _divergence(logprobs: torch.Tensor, targets: Targets) -> torch.Tensor:
    return objective.kl_to_targets(logprobs, targets.logprobs.to(logprobs), targets.tail.to(logprobs))
