"""The device is chosen in one place, on machines that are not this one too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from quant.engines.transformers import TransformersEngine
from rpam_lite import device, platform
from rpam_lite.device import choose_device, compute_reproducibly, free_memory, in_float64
from rpam_lite.errors import RpamError
from rpam_lite.fit.reduce import processes
from rpam_lite.recipe import Memory
from rpam_lite.streaming.machine import budget_of, device_of

GIB = 2**30


def machine(monkeypatch: pytest.MonkeyPatch, cards: int = 0, apple: bool = False) -> None:
    """As if this machine had these."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cards - 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("cards", "apple", "expected"), [(2, True, "cuda:1"), (0, True, "mps"), (0, False, "cpu"), (1, False, "cuda:0")]
)
def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch, cards: int, apple: bool, expected: str) -> None:
    machine(monkeypatch, cards, apple)
    assert str(choose_device("auto", "device")) == expected
    assert str(choose_device("cpu", "device")) == "cpu"
    assert device_of(Memory()) == torch.device(expected)


def test_a_card_is_taken_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=2)
    assert str(choose_device("cuda:0", "device")) == "cuda:0"
    assert str(choose_device("cuda", "device")) == "cuda:1"
    with pytest.raises(RpamError, match=r"device 'cuda:2': torch sees 2 such GPUs"):
        choose_device("cuda:2", "device")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch)
    with pytest.raises(RpamError, match=rf"`memory.accelerator` '{name}': this machine has no usable GPU"):
        choose_device(name, "`memory.accelerator`")


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(RpamError, match="no such device; choose auto, cpu, cuda or mps"):
        choose_device(name, "device")


def test_the_budget_of_one_memory_is_not_given_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, apple=True)
    monkeypatch.setattr(platform, "free_memory", lambda: 16 * GIB)
    monkeypatch.setattr(platform, "resident_memory", lambda: 0)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 14 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * GIB)
    free = free_memory(torch.device("mps"))
    assert (free.device, free.host) == (10 * GIB, 6 * GIB)
    budget = budget_of(Memory(), torch.device("mps"), tmp_path)
    assert budget.device is not None
    assert budget.device + budget.host <= 16 * GIB
    assert free_memory(torch.device("cpu")) == device.FreeMemory(None, 16 * GIB)


def test_what_torch_keeps_of_freed_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 17 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)
    assert free_memory(torch.device("cuda", 0)).device == 22 * GIB


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "free_memory", lambda: 16 * GIB)
    monkeypatch.setattr(platform, "resident_memory", lambda: 1 * GIB)
    cpu, given = torch.device("cpu"), Memory.model_validate({"host": "8GiB", "disk": "10GiB"})
    alone, told = budget_of(Memory(), cpu, tmp_path), budget_of(given, cpu, tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert budget_of(Memory(), cpu, tmp_path).host - GIB == (alone.host - GIB) // 4
    shared = budget_of(given, cpu, tmp_path)
    assert (shared.host, shared.disk) == (told.host // 4, told.disk // 4)


@pytest.mark.parametrize(
    ("cards", "nccl", "card", "backend"),
    [(4, True, 2, "cpu:gloo,cuda:nccl"), (2, True, 0, "gloo"), (4, False, 2, "gloo"), (0, False, None, "gloo")],
)
def test_a_process_takes_a_card_of_its_own_as_long_as_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, cards: int, nccl: bool, card: int | None, backend: str
) -> None:
    machine(monkeypatch, cards)
    taken: list[int] = []
    joined: list[str] = []
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    with processes("auto") as group:
        assert group.rank == 2
    assert taken == ([] if card is None else [card])
    assert joined == [backend]


def test_on_cuda_torch_takes_kernels_that_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    compute_reproducibly(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        compute_reproducibly(torch.device("cuda"))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        matmul.allow_bf16_reduced_precision_reduction = before


@pytest.mark.parametrize("codec", ["nf4", "int8-nf4"])
def test_bitsandbytes_is_refused_on_apples_gpu(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    machine(monkeypatch, apple=True)
    memory = Memory.model_validate({"codec": codec})
    with pytest.raises(RpamError, match="bitsandbytes does not compute on Apple's GPU"):
        device_of(memory)
    assert device_of(memory.model_copy(update={"accelerator": "cpu"})).type == "cpu"
    assert device_of(Memory(codec="int8")).type == "mps"


def test_low_bits_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, apple=True)
    with pytest.raises(RpamError, match="bits=4: bitsandbytes does not compute on Apple's GPU"):
        TransformersEngine(tmp_path, 4)


def test_float64_is_made_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    class Apple(torch.Tensor):
        """Says that it lies on Apple's GPU, and refuses float64 as that does."""

        device = torch.device("mps")  # type: ignore[assignment]

        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)

        def double(self) -> torch.Tensor:
            raise TypeError("MPS has no float64")

    there = torch.ones(3).as_subclass(Apple)
    assert in_float64(there).dtype == torch.float64
    assert in_float64(torch.ones(3)).dtype == torch.float64


def test_one_card_is_not_named_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RpamError, match="'cuda:1': is one card, and 2 processes run here"), processes("cuda:1"):
        pass
