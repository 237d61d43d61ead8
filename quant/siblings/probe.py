"""The linear probe of Self-Route: from a prompt's hidden state to how it should be answered.

Standardised logistic regression (Self-Route, arXiv 2505.20664: a linear router for p(the short mode solves it)).
scikit-learn fits it; what is kept is a mean, a scale, weights and a bias, in JSON, which numpy alone applies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError

Mode = Literal["long", "short"]
PROBE_VERSION = 1


@dataclass(frozen=True)
class Probe:
    """A fitted probe; P(short) = sigmoid(weights . (state - mean) / scale + bias).

    Attributes:
        mean: Of the states it was fitted on, [hidden].
        scale: Their standard deviations, [hidden]; 1 where a state never changed.
        weights: [hidden].
        bias: Added.
        accuracy: Share of right labels in cross-validation, each told by a probe that had not seen it.
        majority: Share of the commoner label: what always telling that one would reach.
        examples: Labels it was fitted on.
        folds: Of the cross-validation.
        seed: Of the folds.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    accuracy: float
    majority: float
    examples: int
    folds: int
    seed: int

    def p_short(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability that each prompt is one for the short mode.

        Args:
            states: [prompts, hidden].

        Raises:
            RpamError: The states are of another width: another model's.
        """
        if states.ndim != 2 or states.shape[1] != len(self.weights):
            raise RpamError(
                f"the probe reads states of {len(self.weights)} values and got an array of shape {states.shape}; "
                "take the hidden states of the model that it was fitted on."
            )
        score = (states.astype(np.float64) - self.mean) / self.scale @ np.asarray(self.weights) + self.bias
        probability: NDArray[np.float64] = 0.5 * (1 + np.tanh(score / 2))  # the sigmoid, without overflow
        return probability


def fit_probe(
    states: NDArray[np.float32], labels: Sequence[Mode], seed: int = 0, folds: int = 5, strength: float = 0.1
) -> Probe:
    """Fit a probe and cross-validate it.

    Args:
        states: Of the labelled prompts, [prompts, hidden]; see `states.last_hidden_states`.
        labels: How each should be answered.
        seed: Of the folds; the fit itself draws nothing.
        folds: Of the cross-validation, each with both labels in their shares.
        strength: scikit-learn's C, the inverse of the L2 penalty on standardised states. They are many for the
            questions there are, so that it is small.

    Raises:
        RpamError: States and labels differ in number, a state is no number, or a label is rarer than `folds`.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(states, labels, folds)
    is_short = np.array([label == "short" for label in labels])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    wide = states.astype(np.float64)
    accuracy = float(cross_val_score(model, wide, is_short, cv=split).mean())
    scaler, regression = (step for _, step in model.fit(wide, is_short).steps)
    return Probe(
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        weights=tuple(regression.coef_[0].tolist()),
        bias=float(regression.intercept_[0]),
        accuracy=accuracy,
        majority=float(max(is_short.mean(), 1 - is_short.mean())),
        examples=len(labels),
        folds=folds,
        seed=seed,
    )


def write_probe(probe: Probe, path: Path) -> None:
    """Keep a probe as JSON."""
    write_json(path, {"version": PROBE_VERSION, **asdict(probe)})


def read_probe(path: Path) -> Probe:
    """Read what `write_probe` wrote.

    Raises:
        RpamError: The file is missing, damaged, or of another version.
    """
    told = read_json(path, "the probe")
    if told.pop("version", None) != PROBE_VERSION:
        raise RpamError(f"{path}: is no probe of version {PROBE_VERSION}; fit it again.")
    try:
        vectors = {name: tuple(float(v) for v in told[name]) for name in ("mean", "scale", "weights")}
        probe = Probe(**{**told, **vectors})
    except (KeyError, TypeError, ValueError) as error:
        raise RpamError(f"{path}: the probe is damaged ({error}); fit it again.") from None
    if not len(probe.mean) == len(probe.scale) == len(probe.weights):
        raise RpamError(
            f"{path}: the probe is damaged (mean, scale and weights are {len(probe.mean)}, {len(probe.scale)} and "
            f"{len(probe.weights)} values long); fit it again."
        )
    return probe


def _check(states: NDArray[np.float32], labels: Sequence[Mode], folds: int) -> None:
    if states.ndim != 2 or len(states) != len(labels):
        raise RpamError(
            f"a probe needs one row of states a label: the states are of shape {states.shape}, "
            f"the labels are {len(labels)}."
        )
    if wrong := next((label for label in labels if label not in ("long", "short")), None):
        raise RpamError(f"label {wrong!r} is none that a probe knows; label prompts 'long' or 'short'.")
    if folds < 2:
        raise RpamError(f"cross-validation with {folds} folds leaves nothing to test on; take 2 or more, as 5.")
    counts = Counter(labels)
    for mode in ("long", "short"):
        if counts[mode] == 0:
            raise RpamError(
                f"none of the {len(labels)} labels is {mode!r}, so there is nothing to choose between; "
                "label questions of more kinds of difficulty."
            )
        if counts[mode] < folds:
            raise RpamError(
                f"only {counts[mode]} of the {len(labels)} labels are {mode!r}, fewer than the {folds} folds of the "
                "cross-validation; label more questions."
            )
    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(1))[0])
        raise RpamError(f"the hidden state of prompt {row} has values that are not finite; leave that prompt out.")
