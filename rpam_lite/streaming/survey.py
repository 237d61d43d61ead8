"""How far the parents are apart, layer by layer, and how well the codec keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from rpam_lite.streaming.weights import WeightSource


@dataclass(frozen=True)
class LayerSurvey:
    """One decoder layer.

    Attributes:
        layer: Its number.
        task_vector: ||L - S|| / ||S|| over all its tensors.
        codec_error: Error of the decoded S and D together relative to ||D||.
    """

    layer: int
    task_vector: float
    codec_error: float


def survey(source: WeightSource) -> list[LayerSurvey]:
    """Read every layer once."""
    rows = []
    for layer, pairs in source.sweep(range(source.skeleton.layers)):
        of_delta = of_short = 0.0
        for pair in pairs.values():
            short, delta = pair.decode()
            of_delta += float(delta.square().sum())
            of_short += float(short.square().sum())
        rows.append(LayerSurvey(layer, (of_delta / max(of_short, 1e-30)) ** 0.5, source.codec_error(layer)))
    return rows
