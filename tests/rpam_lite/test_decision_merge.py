"""The decision row in a merge: the token that it belongs to, the states it is fitted on, the files that hold it."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint.aligned import EMBEDDING, HEAD
from rpam_lite.checkpoint.pair import open_pair
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.fit.coefficients import Coefficients, DecisionRow, load, save, scalar
from rpam_lite.fit.decision_states import decision_states
from rpam_lite.fit.grouping import grouping
from rpam_lite.merge.apply import MergedSource
from rpam_lite.merge.decision import with_decision
from rpam_lite.merge.verify import verify
from rpam_lite.patterns.opening import opening_token
from rpam_lite.streaming.activations import CalibrationSet
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.passes import Streamed
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource
from tests.conftest import make_checkpoint


def rows_opening(long: list[int], short: list[int]) -> list[dict[str, Any]]:
    return [{"response_long": [a, 1], "response_short": [b, 1]} for a, b in zip(long, short, strict=True)]


def test_the_opening_token_is_longs_and_not_shorts() -> None:
    assert opening_token(rows_opening([7] * 19 + [8], [3, 4] * 10)) == 7
    with pytest.raises(RpamError, match=r"token 7 begins 50 % of Long's answers and 0 % of Short's.*think_prefill"):
        opening_token(rows_opening([7, 8], [3, 3]))
    with pytest.raises(RpamError, match=r"token 7 begins 100 % of Long's answers and 50 % of Short's"):
        opening_token(rows_opening([7, 7], [7, 3]))
    with pytest.raises(RpamError, match="no answer of Long's"):
        opening_token([])


@pytest.fixture(params=[("qwen2", {}), ("qwen2", {"tie_word_embeddings": False}), ("granite", {"logits_scaling": 4.0})])
def any_pair(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Any) -> Path:
    kind, overrides = request.param
    for seed, parent in enumerate(("long", "short")):
        make_checkpoint(tmp_path / parent, seed, tokenizer, kind, **overrides)
    return tmp_path


def test_the_states_and_a_written_merge_with_a_row_agree_with_transformers(any_pair: Path) -> None:
    """Decision states from the streaming engine; the row raises the opening token's logit by just row . h."""
    long, short, donor = open_pair(any_pair / "long", any_pair / "short", None, "long")
    skeleton = Skeleton(donor.folder)
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(400, (n,), generator=random) for n in (5, 9, 7)]
    trace = torch.randint(400, (12,), generator=random)
    answers = CalibrationSet([trace], [6], torch.tensor([True]), [torch.tensor([5])])
    source = WeightSource(long, short, skeleton, "exact", "host", skeleton.device, any_pair / "scratch")
    ends = Ends(long, short, skeleton, [*prompts, trace], chunk_rows=100)
    model = Streamed(source, ends, lambda name: torch.tensor(0.4), torch.float32)
    token = 250
    states = decision_states(model, prompts, answers, token, 20, "host", any_pair / "states")
    on_disk = decision_states(model, prompts, answers, token, 20, "disk", any_pair / "states")
    assert all(np.array_equal(a, b) for a, b in zip(astuple(states), astuple(on_disk), strict=True))
    assert not list((any_pair / "states").iterdir())
    assert states.elsewhere.shape == (6, 64)  # the trace's answer, without its first and with its end

    merged = MergedSource(long, short, scalar(0.4).of, torch.float32)
    random_row = torch.randn(64, generator=random)
    deciding = scalar(0.4).deciding(DecisionRow(token=token, row=tuple(random_row.tolist())))
    logits = {}
    for name, decision in (("plain", None), ("deciding", deciding.decision)):
        made, config = with_decision(merged, {**donor.config, "dtype": "float32"}, decision)
        write_checkpoint(made, config, donor.folder, any_pair / name, torch.float32, {"name": name})
        verify(any_pair / name, made, config, seed=1)
        whole = AutoModelForCausalLM.from_pretrained(any_pair / name, dtype=torch.float32).eval()
        with torch.no_grad():
            logits[name] = torch.stack([whole(p.unsqueeze(0)).logits[0, -1] for p in prompts])
            inside = whole(trace.unsqueeze(0)).logits[0, 6:]
        if name == "plain":
            others = torch.cat([inside[:, :token], inside[:, token + 1 :]], dim=1)
            assert states.elsewhere_gaps == pytest.approx((inside[:, token] - others.amax(-1)).numpy(), abs=1e-4)
    own = logits["plain"][:, token].clone()
    logits["plain"][:, token] = -torch.inf
    assert states.gaps == pytest.approx((own - logits["plain"].amax(-1)).numpy(), abs=1e-4)
    raised = torch.tensor(states.decisions) @ random_row.double()
    assert (logits["deciding"][:, token] - own).numpy() == pytest.approx(raised.numpy(), abs=1e-4)
    logits["deciding"][:, token] = -torch.inf
    assert torch.equal(logits["deciding"], logits["plain"])
    # The embedding is what it was: the row changes when the token is said, not what it means.
    tensors = load_file(any_pair / "deciding/model.safetensors")
    plain = load_file(any_pair / "plain/model.safetensors")
    assert torch.equal(tensors[EMBEDDING], plain[EMBEDDING])
    changed = (tensors[HEAD] != plain.get(HEAD, plain[EMBEDDING])).any(1).nonzero().flatten().tolist()
    assert changed == [token]
    assert not json.loads((any_pair / "deciding/config.json").read_text())["tie_word_embeddings"]


def test_a_row_of_another_model_is_refused(pair: Path) -> None:
    long, short, donor = open_pair(pair / "long", pair / "short", None, "long")
    merged = MergedSource(long, short, scalar(0.4).of, torch.float16)
    for row in (DecisionRow(token=1, row=(0.0,) * 63), DecisionRow(token=512, row=(0.0,) * 64)):
        with pytest.raises(RpamError, match="512 tokens and 64 hidden dimensions"):
            with_decision(merged, donor.config, row)


def test_coefficients_keep_their_row(tmp_path: Path) -> None:
    row = DecisionRow(token=3, row=(0.5, -1.25))
    tensors = {"model.layers.0.mlp.up_proj.weight": (4, 2)}
    group = grouping(tensors, "low_rank")
    for made in (scalar(0.5), group.coefficients(group.start_values(0.5))):
        save(made.deciding(row), tmp_path / "coefficients.json")
        found = load(tmp_path / "coefficients.json")
        assert (found.version, found.decision) == (3, row)
        assert made.decision is None
    with pytest.raises(ValueError, match="`version` must be 3"):
        Coefficients(granularity="scalar", values={"model": 0.5}, decision=row)
