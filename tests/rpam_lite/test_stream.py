"""Streamed writing: the same bytes whatever the chunks, after a kill, on a full disk; damaged headers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rpam_lite.checkpoint import stream
from rpam_lite.checkpoint.layout import plan_chunks, plan_shards
from rpam_lite.checkpoint.ranges import read_header, read_tensor
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.errors import RpamError
from rpam_lite.merge.apply import MergedSource

SMALL = 500  # values a chunk


def write(pair: Path, folder: Path, weight: float = 0.3, **options: Any) -> None:
    long, short = CheckpointSource(pair / "long"), CheckpointSource(pair / "short")
    source = MergedSource(long, short, lambda name: weight, torch.float16)
    write_checkpoint(source, long.config, pair / "long", folder, torch.float16, {"weight": weight}, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_chunks_and_threads_do_not_change_a_byte(pair: Path, tmp_path: Path) -> None:
    write(pair, tmp_path / "a")
    write(pair, tmp_path / "b", chunk_values=SMALL)
    torch.set_num_threads(1)
    try:
        write(pair, tmp_path / "c", chunk_values=SMALL)
    finally:
        torch.set_num_threads(2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_shards_hold_every_tensor_once_within_the_limit(pair: Path, tmp_path: Path) -> None:
    write(pair, tmp_path / "one")
    write(pair, tmp_path / "many", shard_bytes=40_000)
    one, many = CheckpointSource(tmp_path / "one"), CheckpointSource(tmp_path / "many")
    assert one.names() == many.names()
    assert all(torch.equal(one.get(n), many.get(n)) for n in one.names())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert all(len(load_file(f)) == 1 or f.stat().st_size < 42_000 for f in files)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / f, dtype=torch.float32) for f in ("one", "many")]
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


@pytest.mark.parametrize("stop_at", [0, 1, 7, 40])
def test_a_killed_merge_goes_on_at_the_next_chunk(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    write(pair, tmp_path / "whole", chunk_values=SMALL, shard_bytes=40_000)
    written: list[int] = []
    real = stream.write_bytes

    def until(file: FileIO, offset: int, rows: torch.Tensor) -> None:
        if len(written) == stop_at:
            real(file, offset, rows[: len(rows) // 2])  # killed in the middle of a chunk
            raise KeyboardInterrupt
        written.append(offset)
        real(file, offset, rows)

    monkeypatch.setattr(stream, "write_bytes", until)
    with pytest.raises(KeyboardInterrupt):
        write(pair, tmp_path / "cut", chunk_values=SMALL, shard_bytes=40_000)
    assert not (tmp_path / "cut").exists()
    again: list[int] = []
    monkeypatch.setattr(stream, "write_bytes", lambda d, offset, rows: (again.append(offset), real(d, offset, rows)))
    write(pair, tmp_path / "cut", chunk_values=SMALL, shard_bytes=40_000)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(again) + len(written) == chunks_of(pair)


def chunks_of(pair: Path) -> int:
    source = CheckpointSource(pair / "long")
    shapes = {name: source.shape(name) for name in source.names()}
    shards = plan_shards(shapes, torch.float16, 40_000)
    return len(plan_chunks(shards, shapes, torch.float16, SMALL))


def test_what_was_begun_from_something_else_is_not_gone_on_with(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pair, tmp_path / "whole", weight=0.6)
    monkeypatch.setattr(stream, "write_bytes", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(pair, tmp_path / "cut", weight=0.3)
    monkeypatch.undo()
    write(pair, tmp_path / "cut", weight=0.6)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_after_a_crash_of_the_machine_it_starts_anew(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal counts may not have reached the disk then."""
    real = stream.write_bytes
    monkeypatch.setattr(stream, "write_bytes", lambda *args: None)  # nothing reaches the disk
    monkeypatch.setattr(stream.os, "fsync", lambda d: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(pair, tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setattr(stream, "boot_id", lambda: "another")
    monkeypatch.setattr(stream, "write_bytes", real)
    write(pair, tmp_path / "cut")
    write(pair, tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_full_disk_says_how_much_is_missing(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 900, 100))  # type: ignore[attr-defined]
    size = sum(CheckpointSource(pair / "long").get(n).numel() * 2 for n in CheckpointSource(pair / "long").names())
    with pytest.raises(RpamError, match=r"the disk is full, \d+ bytes more") as caught:
        write(pair, tmp_path / "merged")
    missing = int(str(caught.value).split("full, ")[1].split(" ")[0])
    assert size - 100 < missing < size + 5000
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_holds_something_else_is_left_alone(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years", encoding="utf-8")
    with pytest.raises(RpamError, match="is there already and no merge of ours"):
        write(pair, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text(encoding="utf-8") == "years"
    with pytest.raises(RpamError, match="is there already"):
        write(pair, pair / "short")
    write(pair, tmp_path / "ours")
    write(pair, tmp_path / "ours", weight=0.4)


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(file: Path, header: str, data: bytes) -> None:
    text = header.encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change(**entry: Any) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        header["model.norm.weight"] |= entry

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change(data_offsets=[0, 128]), "overlap"),
        (change(data_offsets=[0, 4]), "has 4 bytes"),
        (change(data_offsets=[-2, 126]), "describes 'model.norm.weight' wrongly"),
        (change(data_offsets=[1 << 40, (1 << 40) + 128]), "leave a gap"),
        (change(shape=[63]), "has 128 bytes"),
        (change(shape="64"), "wrongly"),
        (change(dtype="F8_E4M3"), "can't be merged"),
        (lambda header: header.pop("model.norm.weight"), "gap|promises"),
        (lambda header: header.__setitem__("more", 3), "describes 'more' wrongly"),
    ],
)
def test_a_header_that_lies_is_refused(pair: Path, damage: Callable[[dict[str, Any]], None], says: str) -> None:
    file = pair / "long" / "model.safetensors"
    header, data = header_of(file)
    damage(header)
    with_header(file, json.dumps(header), data)
    with pytest.raises(RpamError, match=says):
        CheckpointSource(pair / "long")


def test_a_name_that_stands_twice_is_refused(pair: Path) -> None:
    file = pair / "long" / "model.safetensors"
    header, data = header_of(file)
    entry = json.dumps(header["model.norm.weight"])
    with_header(file, json.dumps(header)[:-1] + f', "model.norm.weight": {entry}}}', data)
    with pytest.raises(RpamError, match="a name stands there twice"):
        CheckpointSource(pair / "long")


def test_shards_and_index_must_agree(pair: Path, tmp_path: Path) -> None:
    write(pair, tmp_path / "many", shard_bytes=40_000)
    index = tmp_path / "many" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    names = sorted(good["weight_map"])
    for damage, says in (
        ({names[0]: "../../etc/passwd"}, "no file of this folder"),
        ({names[0]: good["weight_map"][names[-1]]}, f"puts {names[0]} into"),
        ({"phantom": good["weight_map"][names[0]]}, "puts phantom into"),
    ):
        index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | damage}))
        with pytest.raises(RpamError, match=says):
            CheckpointSource(tmp_path / "many")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_a_header_with_random_damage_is_read_right_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Never another error, never bytes from outside the file."""
    file = tmp_path / "weights.safetensors"
    tensors = {"a": torch.arange(12, dtype=torch.float32).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content)] * 3 + [len(content) // 2]))]
    file.write_bytes(bytes(content))
    try:
        extents = read_header(file)
    except RpamError:
        return
    for extent in extents.values():
        assert extent.offset + extent.size <= file.stat().st_size
        assert read_tensor(extent).shape == extent.shape
