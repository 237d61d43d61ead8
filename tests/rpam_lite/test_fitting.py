"""The fit stage's failures: memory that runs out, a loss that does not fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rpam_lite.errors import RpamError
from rpam_lite.fit.setup import Planned, as_begun
from rpam_lite.pipeline.fitting import _warning
from rpam_lite.pipeline.memory import advice
from rpam_lite.recipe import parse_size
from rpam_lite.streaming.choice import choose, describe, next_smaller
from rpam_lite.streaming.plan import Budget, WorkSize, model_size
from rpam_lite.streaming.shapes import config_of_shape
from rpam_lite.streaming.skeleton import Skeleton

WORK = WorkSize(tokens=128 * 256, longest=256, kept=128 * 256, targets=128 * 129, distinct=8000, top_k=64)
MUCH = 1 << 50


@pytest.fixture(scope="module")
def planned() -> Planned:
    """A 7B pair on this machine's CPU, with all the memory it likes."""
    skeleton = Skeleton(config_of_shape("qwen2.5-7b"))
    model, budget = model_size(skeleton), Budget(None, MUCH, MUCH)
    nothing = cast(Any, None)
    return Planned(nothing, nothing, skeleton, model, WORK, budget, choose(model, WORK, budget))


def test_memory_that_runs_out_names_the_next_smaller_way_and_it_is_smaller(planned: Planned) -> None:
    with pytest.raises(RpamError, match="Out of host memory with exact layers on host") as caught, advice(planned):
        torch.empty(1 << 55)  # torch's own error
    size = str(caught.value).split("set `memory.host` to ")[1].split(",")[0]
    smaller = choose(planned.model, WORK, Budget(None, parse_size(size.replace(" ", ""), ""), MUCH))
    assert f"which makes it {describe(smaller.way)}" in str(caught.value)
    assert smaller.total("host") < 0.9 * planned.plan.total("host")
    assert "another one starts this stage anew" in str(caught.value)


def test_a_codec_that_is_set_is_kept_in_the_advice(planned: Planned) -> None:
    plans = [choose(planned.model, WORK, Budget(None, MUCH, MUCH), "nf4")]
    while (less := next_smaller(plans[-1], planned.model, WORK, planned.budget, "host", "nf4")) is not None:
        plans.append(less)
    for plan, says in ((plans[0], "which makes it nf4 layers"), (plans[-1], "with `memory.codec: nf4` needs less")):
        with pytest.raises(RpamError, match=says), advice(replace(planned, plan=plan, codec="nf4")):
            raise MemoryError


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_every_kind_of_it_is_caught(planned: Planned, error: Exception) -> None:
    with pytest.raises(RpamError, match="Out of host memory"), advice(planned):
        raise error


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "host"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), "host"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), "host"),
        (MemoryError(), "host"),
    ],
)
def test_on_a_card_the_place_that_lacks_memory_is_named(planned: Planned, error: Exception, place: str) -> None:
    skeleton = cast(Any, SimpleNamespace(device=torch.device("cuda", 0)))
    budget = Budget(8 << 30, MUCH, MUCH)
    on_card = replace(planned, skeleton=skeleton, budget=budget, plan=choose(planned.model, WORK, budget))
    with pytest.raises(RpamError, match=f"Out of {place} memory with exact layers on host") as caught, advice(on_card):
        raise error
    size = parse_size(str(caught.value).split(f"set `memory.{place}` to ")[1].split(",")[0].replace(" ", ""), "")
    assert size < on_card.plan.total(place)
    less = replace(budget, **{place: size})
    assert f"which makes it {describe(choose(planned.model, WORK, less).way)}" in str(caught.value)


def test_an_interrupted_stage_goes_on_in_the_way_that_it_began_with(planned: Planned, tmp_path: Path) -> None:
    scratch, state = tmp_path / "scratch", tmp_path / "streams-001.pt"
    few = Budget(None, int(0.6 * planned.plan.total("host")), MUCH)
    began = replace(planned, budget=few, plan=choose(planned.model, WORK, few))
    assert began.plan.way != planned.plan.way
    assert as_begun(began, scratch) == began
    state.write_bytes(b"state")
    assert as_begun(planned, scratch, [state]).plan.way == began.plan.way
    assert state.exists()
    # Now there is less than the way takes that it began with: it begins anew, without the old state.
    least = Budget(None, int(0.8 * began.plan.total("host")), MUCH)
    anew = replace(planned, budget=least, plan=choose(planned.model, WORK, least))
    assert as_begun(anew, scratch, [state]).plan.way == anew.plan.way
    assert not state.exists()
    assert as_begun(planned, scratch).plan.way == anew.plan.way


def test_other_errors_pass(planned: Planned) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), advice(planned):
        raise RuntimeError("shapes differ")


def test_a_loss_that_does_not_fall_is_said() -> None:
    assert _warning([{"loss": 2.0}, {"loss": 1.9}]) is None
    assert "never fell" in str(_warning([{"loss": 2.0}, {"loss": 2.1}]))
    assert "never fell" in str(_warning([{"loss": 2.0}]))
