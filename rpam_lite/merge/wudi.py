"""WUDI: merged task vectors of linear layers that interfere least with each parent's (arXiv 2503.08099).

Minimises sum_k |(t - t_k) t_k^T|^2 / |t_k|^2 over t with Adam, from the task vectors' sum on: a linear
layer's task vector spans about what its inputs span, so no data are needed.
"""

from __future__ import annotations

import torch

from rpam_lite.merge.models import Options, Tensors


def interference(merged: torch.Tensor, vectors: list[torch.Tensor]) -> torch.Tensor:
    """What WUDI minimises, of task vectors [out, in]."""
    tiny = torch.finfo(merged.dtype).tiny
    parts = [((merged - v) @ v.T).square().sum() / v.square().sum().clamp_min(tiny) for v in vectors]
    return torch.stack(parts).sum()


def wudi(tensors: Tensors, options: Options) -> torch.Tensor:
    """B + t for the weights of linear layers; B + the mean task vector for all else."""
    vectors = tensors.task_vectors
    assert tensors.base is not None
    if not tensors.of_linear_layer:
        return tensors.base + torch.stack(vectors).mean(0)
    merged = torch.stack(vectors).sum(0).requires_grad_()
    adam = torch.optim.Adam([merged], lr=options["learning_rate"])
    with torch.enable_grad():
        for _ in range(int(options["steps"])):
            adam.zero_grad()
            interference(merged, vectors).backward()  # type: ignore[no-untyped-call]
            adam.step()
    return tensors.base + merged.detach()
