"""Probes: hidden states are the model's own, and a probe learns from them what can be learned."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.engines.llama_cpp import LlamaCppEngine
from quant.siblings import fit_probe, folder_states, last_hidden_states, read_probe, write_probe
from rpam_lite.errors import RpamError


def test_llama_cpp_and_transformers_agree_on_the_hidden_state(folder: Path, engine: LlamaCppEngine) -> None:
    generator = np.random.default_rng(0)
    # Shorter than, as long as, and longer than the pieces that llama.cpp is given at a time.
    prompts = [tuple(generator.integers(0, 470, n).tolist()) for n in (1, 7, 64, 65, 150)]
    ours = last_hidden_states(engine, prompts)
    theirs = folder_states(folder)(prompts)
    assert ours.shape == theirs.shape == (5, 256)
    assert ours.dtype == theirs.dtype == np.float32
    # llama.cpp keeps its cache in 16 bits.
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.5 * np.abs(theirs).max()
    np.testing.assert_array_equal(last_hidden_states(engine, prompts[::-1])[::-1], ours)


def test_a_prompt_without_tokens_has_no_state(folder: Path, engine: LlamaCppEngine) -> None:
    for states in (partial(last_hidden_states, engine), folder_states(folder)):
        with pytest.raises(RpamError, match="prompt 1 has no tokens; make prompts with chat_prompt"):
            states([(1,), ()])
        with pytest.raises(RpamError, match="there are no prompts to read hidden states of"):
            states([])


def separable(count: int = 60, seed: int = 0) -> tuple[Any, list[Any]]:
    """States [count, 8] whose label is told by one direction, off the origin."""
    states = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32) * 5 + 100
    return states, ["short" if row[2] - row[5] > 0 else "long" for row in states]


def test_a_probe_learns_a_linear_rule_and_says_how_well() -> None:
    states, labels = separable()
    probe = fit_probe(states, labels, strength=10.0)
    held_out, expected = separable(200, seed=1)
    told = ["short" if p >= 0.5 else "long" for p in probe.p_short(held_out)]
    assert np.mean([a == b for a, b in zip(told, expected, strict=True)]) > 0.93
    assert probe.accuracy > 0.9
    assert probe.majority == max(labels.count("short"), labels.count("long")) / 60
    shuffled = list(np.random.default_rng(2).permutation(labels))
    assert fit_probe(states, shuffled).accuracy < 0.7


def test_a_probe_gives_scikit_learns_own_probabilities() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, labels = separable()
    states[:, 3] = 7.0  # never changes: no scale
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(states, labels)
    expected = model.predict_proba(states)[:, list(model.classes_).index("short")]
    np.testing.assert_allclose(fit_probe(states, labels).p_short(states), expected, atol=1e-5)


def test_a_probe_comes_back_from_its_file(tmp_path: Path) -> None:
    probe = fit_probe(*separable(), seed=3)
    write_probe(probe, tmp_path / "probe.json")
    assert read_probe(tmp_path / "probe.json") == probe
    told = json.loads((tmp_path / "probe.json").read_text())
    for damage, match in (
        ({"version": 0}, "is no probe of version 1; fit it again"),
        ({"weights": [1.0]}, "mean, scale and weights are 8, 8 and 1 values long"),
        ({"mean": "x"}, "the probe is damaged"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(told | damage))
        with pytest.raises(RpamError, match=match):
            read_probe(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["long"] * 60, "none of the 60 labels is 'short', so there is nothing to choose between"),
        (["long"] * 57 + ["short"] * 3, "only 3 of the 60 labels are 'short', fewer than the 5 folds"),
        (["long"] * 59, "the labels are 59"),
        (["long"] * 59 + ["medium"], "label 'medium' is none that a probe knows"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[Any], match: str) -> None:
    with pytest.raises(RpamError, match=match):
        fit_probe(separable()[0], labels)


def test_states_of_another_model_are_refused() -> None:
    states, labels = separable()
    with pytest.raises(RpamError, match=r"reads states of 8 values and got an array of shape \(60, 7\)"):
        fit_probe(states, labels).p_short(states[:, :7])
    states[4, 1] = np.inf
    with pytest.raises(RpamError, match="the hidden state of prompt 4 has values that are not finite"):
        fit_probe(states, labels)
