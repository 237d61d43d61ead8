"""Preflight: memory and disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpam_lite.checkpoint.pair import open_parent
from rpam_lite.preflight import check, machine
from rpam_lite.recipe import load_recipe
from rpam_lite.streaming.skeleton import load_config
from tests.rpam_lite.test_preflight import check_pair, codes


def test_too_little_memory_and_disk_are_errors(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_pair(pair)
    raw = yaml.safe_load((pair / "mine.yaml").read_text()) | {"memory": {"host": "1MB"}}
    (pair / "mine.yaml").write_text(yaml.safe_dump(raw))
    assert codes(check(load_recipe(pair / "mine.yaml"), pair / "runs")) == {"memory"}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    found = [f for f in check(load_recipe(pair / "mine.yaml"), pair / "runs") if f.code == "disk"]
    assert [f.level for f in found] == ["ERROR"]
    assert "label" in found[0].message


def test_the_disk_holds_the_head_that_a_decision_row_unties(pair: Path, edit_json: Callable[..., None]) -> None:
    check_pair(pair)
    raw = yaml.safe_load((pair / "mine.yaml").read_text())
    source, config = open_parent(pair / "long", None), load_config(pair / "long")
    values = sum(prod(source.shape(name)) for name in source.names())
    assert config.tie_word_embeddings

    def needed(**dial: Any) -> dict[str, int]:
        (pair / "mine.yaml").write_text(yaml.safe_dump(raw | ({"dial": dial} if dial else {})))
        return machine.bytes_by_stage(values, config, load_recipe(pair / "mine.yaml"))

    head = 2 * config.vocab_size * config.hidden_size
    alone, fitted, decided = needed(), needed(by="fit", prices=[1]), needed(budgets=[0.5])
    assert fitted == alone | {"capture": fitted["capture"]}
    assert decided["merge"] == decided["export"] == alone["merge"] + head
    assert decided["label"] == alone["label"]  # both parents, as they are
