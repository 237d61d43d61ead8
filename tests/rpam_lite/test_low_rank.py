"""A field of low rank over each matrix: it starts at one number, and merges as its formula says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.mergekit import mergekit_config
from rpam_lite.checkpoint.arithmetic import LowRank, interpolate, interpolate_rounded
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from rpam_lite.fit.coefficients import Coefficients, load, save
from rpam_lite.fit.gradient import joint_gradient
from rpam_lite.fit.grouping import Grouping, grouping
from rpam_lite.fit.joint import fit_jointly
from rpam_lite.fit.low_rank import FieldForm, factors_file
from rpam_lite.fit.sequential import fit_sequentially
from rpam_lite.merge.apply import MergedSource
from rpam_lite.recipe import Fit
from tests.rpam_lite.engine import capture_pair, problem_of, stores_of

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.up_proj.bias": (6,),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.1.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}
UP = "model.layers.0.mlp.up_proj.weight"


def fields(rank: int = 2, lower: float = 0.0, upper: float = 1.0) -> Grouping:
    return grouping(SHAPES, "low_rank", FieldForm(rank, lower, upper))


def random_values(groups: Grouping, spread: float = 0.3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.5 + spread * torch.randn(len(groups), generator=generator, dtype=dtype)


def same(vector: torch.Tensor) -> torch.Tensor:
    return vector


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_it_starts_at_one_number_everywhere(rank: int) -> None:
    groups = fields(rank)
    values = groups.start_values(0.6)
    assert len(values) == 3 + 2 * (1 + rank * (6 + 4))
    for name in SHAPES:
        found = groups.of(values, name)
        assert torch.equal(found, torch.full(found.shape, 0.6)), name
    assert groups.of(values, UP).shape == (6, 4)
    assert groups.of(values, UP.replace("weight", "bias")).ndim == 0


def test_each_products_moving_factor_has_a_gradient_at_the_start() -> None:
    groups = fields(rank=4)
    values, gradient = groups.start_values(0.5), torch.zeros(len(groups))
    towards = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    groups.add_gradient(gradient, values, UP, towards.clone())
    field = groups.field(gradient, "layers.0.mlp.up_proj")
    assert field.base == pytest.approx(float(towards.sum()), rel=1e-5)
    torch.testing.assert_close(field.rows[0], towards.sum(1))
    torch.testing.assert_close(field.columns[1], towards.sum(0))
    for k in range(4):
        assert (field.rows if k % 2 == 0 else field.columns)[k].abs().max() > 0.1


def test_the_field_is_its_formula_and_stays_in_its_box() -> None:
    groups = fields(rank=3, lower=0.1, upper=0.9)
    values = random_values(groups)
    field = groups.field(values, "layers.0.mlp.up_proj")
    expected = torch.empty(6, 4)
    for r in range(6):
        for c in range(4):
            products = sum(float(field.rows[k, r] * field.columns[k, c]) for k in range(3))
            expected[r, c] = min(0.9, max(0.1, float(field.base) + products))
    torch.testing.assert_close(groups.of(values, UP), expected)
    assert 0.1 in expected or 0.9 in expected


def test_the_numbers_gradient_is_that_of_autograd_where_some_are_cut_off() -> None:
    groups = fields(rank=3)
    values = random_values(groups, dtype=torch.float64).requires_grad_()
    lambdas = groups.of(values, UP)
    assert 0 < int(((lambdas > 0) & (lambdas < 1)).sum()) < lambdas.numel()
    towards = torch.randn(6, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad((lambdas * towards).sum(), values)
    found = torch.zeros(len(groups), dtype=torch.float64)
    groups.add_gradient(found, values.detach(), UP, towards.clone())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_ridge_is_the_variance_over_all_weights() -> None:
    groups = fields(rank=3, lower=-9.0, upper=9.0)
    values = random_values(groups, dtype=torch.float64)
    each = [
        groups.of(values, name).flatten()
        for name in ("model.embed_tokens.weight", UP, "model.layers.0.input_layernorm.weight")
    ]
    each += [groups.of(values, n).flatten() for n in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight")]
    centre = torch.stack([one.mean() for one in each]).mean()
    expected = torch.stack([(one - centre).square().mean() for one in each]).mean()
    torch.testing.assert_close(groups.variance(values), expected)
    assert groups.variance(groups.start_values(0.5)) == 0


def test_neighbours_are_the_fields_bases() -> None:
    groups = fields()
    starts = [groups.start[f"layers.{i}.mlp.up_proj"] for i in (0, 1)]
    assert groups.neighbours().T.tolist() == [starts]


@pytest.fixture
def captured(pair: Path, tmp_path: Path) -> Path:
    return capture_pair(pair, tmp_path / "capture")


def fitted(pair: Path, captured: Path, folder: Path, **fit: Any) -> tuple[Any, Any]:
    settings = {"granularity": "low_rank", "rank": 2, "steps": 12, "tolerance": 0, **fit}
    problem = problem_of(pair, captured, torch.float32, **settings)
    start = problem.grouping.start_values(0.5)
    return problem, fit_jointly(problem, start, stores_of(problem, folder), same, None)


def test_the_fit_begins_where_one_number_is_and_goes_below_one_a_matrix(
    pair: Path, captured: Path, tmp_path: Path
) -> None:
    _, low_rank = fitted(pair, captured, tmp_path)
    matrix = problem_of(pair, captured, torch.float32, granularity="matrix", steps=12, tolerance=0)
    other = fit_jointly(matrix, matrix.grouping.start_values(0.5), stores_of(matrix, tmp_path), same, None)
    assert low_rank.curve[0]["loss"] == pytest.approx(other.curve[0]["loss"], rel=1e-5)
    assert min(e["loss"] for e in low_rank.curve) < min(e["loss"] for e in other.curve)


def test_ridge_holds_it_together(pair: Path, captured: Path, tmp_path: Path) -> None:
    spreads = []
    for ridge in (0.0, 100.0):
        problem, found = fitted(pair, captured, tmp_path, ridge=ridge)
        spreads.append(float(problem.grouping.variance(found.values)))
    assert spreads[1] < 0.2 * spreads[0]


def test_the_sequential_start_moves_the_bases_alone(pair: Path, captured: Path, tmp_path: Path) -> None:
    problem = problem_of(pair, captured, torch.float32, granularity="low_rank", rank=2)
    start = problem.grouping.start_values(0.5)
    values, report = fit_sequentially(problem, start, stores_of(problem, tmp_path).upstream, same, None)
    assert all(row["after"] < row["before"] for row in report)
    for group in problem.grouping.matrices:
        before, after = (problem.grouping.field(v, group) for v in (start, values))
        assert torch.equal(before.rows, after.rows)
        assert torch.equal(before.columns, after.columns)


def test_coefficients_round_trip_with_their_factors(tmp_path: Path) -> None:
    groups = fields()
    values = random_values(groups)
    made = groups.coefficients(values)
    save(made, tmp_path / "coefficients.json")
    told = json.loads((tmp_path / "coefficients.json").read_text())
    assert (told["version"], told["granularity"], told["low_rank"]["rank"]) == (2, "low_rank", 2)
    assert told["values"]["layers.0.mlp.up_proj"] == pytest.approx(float(groups.of(values, UP).mean()), abs=1e-6)
    again = load(tmp_path / "coefficients.json")
    for name in SHAPES:
        of_file, of_fit = again.of(name), groups.of(values, name)
        of_file = of_file.dense() if isinstance(of_file, LowRank) else torch.as_tensor(of_file)
        assert torch.equal(of_file, of_fit), name
    save(groups.coefficients(values + 0.01), tmp_path / "other" / "coefficients.json")
    factors_file(tmp_path).write_bytes(factors_file(tmp_path / "other").read_bytes())
    with pytest.raises(RpamError, match=r"factors.safetensors: is not the one that coefficients.json beside it"):
        load(tmp_path / "coefficients.json")
    factors_file(tmp_path).unlink()
    with pytest.raises(RpamError, match=r"factors.safetensors: can't be read"):
        load(tmp_path / "coefficients.json")


def test_a_file_of_another_granularity_has_no_factors() -> None:
    assert groups_of("matrix").coefficients(torch.full((5,), 0.5)).low_rank is None
    with pytest.raises(ValueError, match="go together"):
        Coefficients(granularity="low_rank", values={})


def groups_of(granularity: Any) -> Grouping:
    return grouping(SHAPES, granularity)


def random_field(shape: tuple[int, int], rank: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(4)
    rows, columns = (0.4 * torch.randn(rank, n, generator=generator) for n in shape)
    return LowRank(torch.tensor(0.5), rows, columns, 0.0, 1.0)


def test_any_block_of_rows_has_the_same_bits() -> None:
    field = random_field((101, 67))
    whole = field.dense()
    for start, stop in ((0, 1), (3, 50), (50, 101)):
        assert torch.equal(field[start:stop].dense(), whole[start:stop])


def test_the_merge_is_the_formula_in_fp32_rounded_once(pair: Path) -> None:
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    name = "model.layers.1.mlp.up_proj.weight"
    field = random_field((128, 64))
    source = MergedSource(long, short, lambda n: field if n == name else 0.5, torch.float16)
    s, d = short.get(name).float(), long.get(name).float() - short.get(name).float()
    expected = d * field.dense() + s
    assert torch.equal(source.get(name), expected.half())
    assert torch.equal(source.exact_rows(name, 5, 9), expected[5:9])
    assert torch.equal(torch.cat([source.rows(name, 0, 7), source.rows(name, 7, 128)]), expected.half())
    wide, other = torch.randn(900, 700), torch.randn(900, 700)  # more than one block
    weight = random_field((900, 700))
    rounded = interpolate_rounded(wide, other, weight, torch.bfloat16)
    assert torch.equal(rounded, interpolate(wide, other, weight).bfloat16())


def test_mergekit_cannot_be_told(pair: Path) -> None:
    with pytest.raises(RpamError, match="has a coefficient a weight and mergekit knows one a tensor"):
        mergekit_config(pair / "long", pair / "short", "long", [[UP]], [], lambda name: random_field((6, 4)), "float16")


def test_rank_is_read_under_low_rank_alone() -> None:
    assert Fit(granularity="low_rank").rank == 2
    with pytest.raises(ValueError, match="`rank` is read under `granularity: low_rank` alone"):
        Fit(rank=3)


def test_disk_or_host_the_gradient_is_the_same(pair: Path, captured: Path, tmp_path: Path) -> None:
    problem = problem_of(pair, captured, torch.float64, granularity="low_rank", rank=3)
    values = problem.grouping.start_values(0.5).double()
    host, disk = (joint_gradient(problem, values, stores_of(problem, tmp_path, k), same)[1] for k in ("host", "disk"))
    assert torch.equal(host, disk)
    assert host.abs().max() > 0
