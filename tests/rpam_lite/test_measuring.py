"""Small models are measured side by side, and what ends one of them ends them all."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpam_lite.errors import RpamError
from rpam_lite.pipeline import measuring
from rpam_lite.pipeline.measuring import TOGETHER, Row, measure_rows, models_at_once


@pytest.fixture
def rows(tmp_path: Path) -> dict[Path, Row]:
    """Six models, of which the first one's file is there."""
    (tmp_path / "0.gguf").write_bytes(b"small")
    return {tmp_path / f"{i}.jsonl": Row(str(i), "merge", None, tmp_path / f"{i}.gguf") for i in range(6)}


def run_with(threads: int, engine_threads: int) -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(threads=threads, engine_threads=engine_threads))


def test_two_models_answer_at_once_and_keep_their_places(
    rows: dict[Path, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)

    def measured(run: Any, row: Row, asking: Any, file: Path, stop: Any) -> list[str]:
        both.wait()  # breaks unless another one is at work
        return [row.name]

    monkeypatch.setattr(measuring, "measure_row", measured)
    found = measure_rows(run_with(4, 2), rows, None)  # type: ignore[arg-type]
    assert found == {file: [row.name] for file, row in rows.items()}


def test_one_engine_with_all_threads_works_alone(rows: dict[Path, Row], monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    monkeypatch.setattr(measuring, "measure_row", lambda *given: used.add(threading.current_thread()) or [])
    assert list(measure_rows(run_with(2, 2), rows, None)) == list(rows)  # type: ignore[arg-type]
    assert used == {threading.main_thread()}


@pytest.mark.parametrize("raised", [RpamError("1.gguf: broken"), KeyboardInterrupt()])
def test_an_error_ends_all(rows: dict[Path, Row], monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    begun, told = [], []

    def measured(run: Any, row: Row, asking: Any, file: Path, stop: Any) -> list[str]:
        begun.append(row.name)
        if row.name == "1":
            raise raised
        told.append(stop.wait(20))
        return []

    monkeypatch.setattr(measuring, "measure_row", measured)
    with pytest.raises(type(raised)):
        measure_rows(run_with(2, 1), rows, None)  # type: ignore[arg-type]
    assert len(begun) < len(rows)
    assert told
    assert all(told)


def test_large_models_are_measured_one_by_one(tmp_path: Path) -> None:
    def row(name: str, size: int | None) -> Row:
        file = tmp_path / name
        if size is not None:
            with file.open("wb") as stream:
                stream.truncate(size)
        return Row(name, "merge", None, file)

    yet_to_be_made = row("member.gguf", None)
    assert models_at_once(4, [row("tiny.gguf", 2**20), yet_to_be_made]) == 4
    assert models_at_once(4, [row("small.gguf", TOGETHER // 3), yet_to_be_made]) == 3
    assert models_at_once(4, [row("large.gguf", 15 * 2**30), yet_to_be_made]) == 1
    assert models_at_once(4, [yet_to_be_made]) == 1
    assert models_at_once(0, [row("tiny.gguf", 2**20)]) == 1
