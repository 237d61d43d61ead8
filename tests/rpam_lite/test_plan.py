"""The planner: what fits where, and what it says when nothing does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.platform import resident_memory
from rpam_lite.recipe import Memory, parse_size
from rpam_lite.streaming.choice import BudgetError, choose, fits, next_smaller
from rpam_lite.streaming.machine import peak_memory
from rpam_lite.streaming.plan import Budget, ModelSize, WorkSize, model_size, plan_for
from rpam_lite.streaming.plan_table import plan_table
from rpam_lite.streaming.shapes import SHAPES, config_of_shape
from rpam_lite.streaming.skeleton import Skeleton

GIB = 2**30
WORK = WorkSize(tokens=128 * 256, longest=256, kept=128 * 256, targets=128 * 129, distinct=8000, top_k=64)
MUCH = 1 << 50


@pytest.fixture(scope="module")
def seven() -> ModelSize:
    return model_size(Skeleton(config_of_shape("qwen2.5-7b")))


def test_sizes_of_a_7b_are_the_published_ones(seven: ModelSize) -> None:
    """Qwen2.5-7B: 6.53e9 parameters without embeddings, a layer pair of 932 MB in 16 bits."""
    assert seven.layers == 28
    assert abs(seven.layers * seven.layer_values - 6.53e9) < 0.01e9
    assert abs(2 * 2 * seven.layer_values - 932e6) < 1e6


def test_the_fastest_way_that_fits_is_taken(seven: ModelSize) -> None:
    ways = {
        name: (plan.way.codec, plan.way.residency)
        for name, plan in {
            "80 GB": choose(seven, WORK, Budget(74 * GIB, 64 * GIB, MUCH)),
            "8 GB, much host": choose(seven, WORK, Budget(7 * GIB, 32 * GIB, MUCH)),
            "16 GB, little host": choose(seven, WORK, Budget(22 * GIB, 12 * GIB, MUCH)),
            "8 GB, little host": choose(seven, WORK, Budget(7 * GIB, 8 * GIB, MUCH)),
        }.items()
    }
    assert ways == {
        "80 GB": ("exact", "device"),
        "8 GB, much host": ("exact", "host"),
        "16 GB, little host": ("int8", "device"),
        "8 GB, little host": ("exact", "disk"),
    }


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_plan_stays_within_its_budget(shape: str) -> None:
    model = model_size(Skeleton(config_of_shape(shape)))
    for device in (12, 16, 24) if shape == "qwen2.5-32b" else (8, 12, 16, 24):
        budget = Budget(device * GIB, 48 * GIB, MUCH)
        plan = choose(model, WORK, budget)
        assert fits(plan, budget)
        assert plan.total("device") <= device * GIB


def test_the_codec_that_is_asked_for_is_taken(seven: ModelSize) -> None:
    assert choose(seven, WORK, Budget(12 * GIB, 16 * GIB, MUCH), "nf4").way.codec == "nf4"


def test_too_small_a_budget_names_what_would_do(seven: ModelSize) -> None:
    with pytest.raises(RpamError, match=r"needs device (\d\.\d) GiB \(given: 1\.0 GiB\)") as caught:
        choose(seven, WORK, Budget(GIB, 64 * GIB, MUCH))
    assert choose(seven, WORK, Budget(needed(caught.value)["device"], 64 * GIB, MUCH))


def needed(error: RpamError) -> dict[str, int]:
    """Bytes by place, as a refusal's sentence names them."""
    found = re.findall(r"(device|host|disk) (\d+\.\d [GMK]iB) \(given", str(error))
    return {place: parse_size(size, place) for place, size in found}


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "qwen2.5-7b", "llama-3.1-8b"])
@pytest.mark.parametrize("device", [0, GIB // 2, None])
def test_what_a_refusal_asks_for_is_enough(shape: str, device: int | None) -> None:
    model = model_size(Skeleton(config_of_shape(shape)))
    budget = Budget(device, 1 << 20, 1 << 20)
    with pytest.raises(BudgetError) as caught:
        choose(model, WORK, budget)
    more = needed(caught.value)
    assert more
    enough = Budget(more.get("device", device) if device is not None else None, more["host"], more["disk"])
    assert choose(model, WORK, enough)
    assert more.get("device", 0) < 4 * GIB  # not the resident way


def test_after_running_out_of_memory_there_is_a_smaller_way(seven: ModelSize) -> None:
    plan = choose(seven, WORK, Budget(24 * GIB, 64 * GIB, MUCH))
    smaller = next_smaller(plan, seven, WORK, Budget(24 * GIB, 64 * GIB, MUCH), "device")
    assert smaller is not None
    assert smaller.total("device") < plan.total("device")
    held = next_smaller(plan, seven, WORK, Budget(24 * GIB, 64 * GIB, MUCH), "device", "nf4")
    assert held is not None
    assert held.way.codec == "nf4"


def test_few_tokens_make_a_small_micro_batch(seven: ModelSize) -> None:
    few, many = (replace(WORK, tokens=tokens, kept=tokens) for tokens in (512, 4096))
    way = choose(seven, many, Budget(24 * GIB, 64 * GIB, MUCH)).way
    totals = [{what: size for what, _, size in plan_for(way, seven, w, False).items} for w in (few, many)]
    assert totals[0]["activations of a micro-batch"] < 0.5 * totals[1]["activations of a micro-batch"]


def test_the_table_adds_up(seven: ModelSize) -> None:
    budget = Budget(8 * GIB, 32 * GIB, MUCH)
    plan = choose(seven, WORK, budget)
    text = plan_table(plan, budget)
    assert all(what in text for what, _, _ in plan.items)
    assert f"{plan.total('device') / GIB:.1f} GiB" in text
    again = plan_for(plan.way, seven, WORK, on_cpu=False)
    assert again == plan
    more = plan_for(plan.way, seven, WORK, on_cpu=False, resident=GIB)
    assert more.total("host") == plan.total("host") + GIB


def test_every_step_of_a_fit_is_counted(seven: ModelSize) -> None:
    few, many = (replace(WORK, numbers=1_000_000, steps=steps) for steps in (30, 200))
    way = choose(seven, few, Budget(8 * GIB, 32 * GIB, MUCH)).way
    plans = [plan_for(way, seven, work, on_cpu=False) for work in (few, many)]
    told = [next(size for what, _, size in plan.items if "history" in what) for plan in plans]
    assert told[1] - told[0] == 170 * 2 * 4 * 1_000_000  # a point and a gradient a step, fp32


def test_sizes_are_read() -> None:
    assert Memory.model_validate({"device": "6GiB", "host": "500 MB", "disk": 7}).model_dump(
        include={"device", "host", "disk"}
    ) == {"device": 6 * GIB, "host": 500_000_000, "disk": 7}
    with pytest.raises(RpamError, match="--host 6 apples: must be a size"):
        parse_size("6 apples", "--host")


def test_peak_memory_sees_what_was_freed_again() -> None:
    """Of a block so large that what other tests leave to be freed meanwhile does not matter."""
    before = resident_memory()
    with peak_memory(torch.device("cpu")) as peak:
        block = torch.ones(512 << 20, dtype=torch.uint8)
        del block
        assert 384 << 20 < peak() - before < 640 << 20


def test_the_plan_command_plans_a_model_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["plan", "--shape", "qwen2.5-7b", "--host", "32GiB"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    for card in ("8 GB", "12 GB", "16 GB", "24 GB", "CPU"):
        assert card in result.stdout
    assert "both parents' layers" in result.stdout


def test_an_unknown_shape_lists_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["plan", "--shape", "gpt-5"])
    assert isinstance(result.exception, RpamError)
    assert "qwen2.5-7b" in str(result.exception)
