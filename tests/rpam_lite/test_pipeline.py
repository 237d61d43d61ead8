"""Stages: what is reused, what runs again, and what an interruption leaves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rpam_lite.errors import RpamError
from rpam_lite.pipeline import stage as stage_module
from rpam_lite.pipeline.manifest import execute, is_done, read_manifest
from rpam_lite.pipeline.stage import Run, Stage, fingerprint
from rpam_lite.pipeline.trip import STAGES
from rpam_lite.recipe import load_recipe
from tests.rpam_lite.test_recipe import MINIMAL


class Silent:
    def start(self, what: str, total: int) -> Callable[[str], None]:
        return lambda note: None


def make_run(tmp_path: Path, **changes: object) -> Run:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes), encoding="utf-8")
    for name in ("l", "s"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_text(name, encoding="utf-8")
    for name in ("c.jsonl", "e.jsonl"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    return Run(load_recipe(file), tmp_path / "runs" / "mine", Silent(), lambda text: None)


def stale(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Stages whose own fingerprint changed, and all that build on them."""
    result: set[str] = set()
    for name, stage in STAGES.items():
        if before[name] != after[name] or result & set(stage.needs):
            result.add(name)
    return result


def fingerprints(run: Run) -> dict[str, str]:
    return {name: fingerprint(stage, run.recipe) for name, stage in STAGES.items()}


GGUF = ("export", "imatrix", "quantize", "divergence", "eval", "report")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"fit": {"steps": 3}}, {"check", "fit", "merge", *GGUF}),
        ({"merge": {"dtype": "bfloat16"}}, {"check", "merge", *GGUF}),
        ({"quantize": {"types": ["Q6_K"]}}, {"check", "quantize", "divergence", "eval", "report"}),
        ({"eval": {"questions": "e.jsonl", "max_tokens": 9}}, {"check", "eval", "report"}),
        ({"label": {"questions": "c.jsonl", "samples": 3}}, set(STAGES)),
    ],
)
def test_a_changed_recipe_makes_only_dependent_stages_stale(
    tmp_path: Path, changes: dict[str, object], expected: set[str]
) -> None:
    before = fingerprints(make_run(tmp_path))
    assert stale(before, fingerprints(make_run(tmp_path, **changes))) == expected


def test_a_changed_file_makes_its_readers_stale(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = fingerprints(run)
    (tmp_path / "e.jsonl").write_text("other", encoding="utf-8")
    (tmp_path / "s" / "notes.md").write_text("nothing that a stage reads", encoding="utf-8")
    after = fingerprints(run)
    assert stale(before, after) == {"check", "eval", "report"}
    (tmp_path / "s" / "model.safetensors").write_text("other", encoding="utf-8")
    assert stale(after, fingerprints(run)) == set(STAGES)


def counting_stage(action: Callable[[Run], None], version: int = 1) -> dict[str, Stage]:
    stage = Stage("one", (), lambda r: {"name": r.name}, lambda r: [], action, version=version)
    return {"one": stage}


def test_a_finished_stage_is_reused_until_its_files_change(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def write(run: Run) -> None:
        (run.of("one") / "out.txt").write_text("whole", encoding="utf-8")

    stages = counting_stage(write)
    assert not is_done(stages["one"], stages, run)
    execute(stages["one"], stages, run)
    assert is_done(stages["one"], stages, run)
    (run.of("one") / "out.txt").write_text("cut", encoding="utf-8")
    assert not is_done(stages["one"], stages, run)


def test_an_interrupted_stage_keeps_its_files_only_for_the_same_fingerprint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    seen: list[list[str]] = []

    def work(run: Run) -> None:
        seen.append(sorted(p.name for p in run.of("one").iterdir()))
        (run.of("one") / "part.partial").write_text("half", encoding="utf-8")
        if len(seen) == 1:
            raise KeyboardInterrupt

    stages = counting_stage(work)
    with pytest.raises(KeyboardInterrupt):
        execute(stages["one"], stages, run)
    assert not is_done(stages["one"], stages, run)
    execute(stages["one"], stages, run)
    other = counting_stage(work, version=2)
    assert not is_done(other["one"], other, run)
    execute(other["one"], other, run)
    assert seen == [["started.json"], ["part.partial", "started.json"], ["started.json"]]


def test_what_was_built_on_other_files_is_not_done(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    made = iter(["same", "same", "other"])

    def first(run: Run) -> None:
        (run.of("one") / "out.txt").write_text(next(made), encoding="utf-8")

    def second(run: Run) -> None:
        (run.of("two") / "out.txt").write_text("two", encoding="utf-8")

    stages = counting_stage(first)
    stages["two"] = Stage("two", ("one",), lambda r: {"name": r.name}, lambda r: [], second)
    execute(stages["one"], stages, run)
    execute(stages["two"], stages, run)
    assert is_done(stages["two"], stages, run)
    (run.of("one") / "manifest.json").unlink()
    assert not is_done(stages["two"], stages, run)
    execute(stages["one"], stages, run)
    assert is_done(stages["two"], stages, run)
    execute(stages["one"], stages, run)
    assert is_done(stages["one"], stages, run)
    assert not is_done(stages["two"], stages, run)


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    stages, run = counting_stage(lambda run: None), make_run(tmp_path)
    mine = run.of("one") / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("years", encoding="utf-8")
    with pytest.raises(RpamError, match="in a folder that no run of ours made"):
        execute(stages["one"], stages, run)
    assert mine.read_text(encoding="utf-8") == "years"


def test_a_large_file_made_again_with_the_same_bytes_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parents' GGUF files, after `rpam clean --ggufs`: what was built on them stays done."""
    monkeypatch.setattr(stage_module, "_HASHED_SIZE", 0)
    run, content = make_run(tmp_path), ["weights"]

    def act(run: Run) -> None:
        (run.of("check") / "long.gguf").write_text(content[0], encoding="utf-8")
        os.utime(run.of("check") / "long.gguf", ns=(next(times), next(times)))

    times = itertools.count(10**18, 10**9)
    check = replace(STAGES["check"], action=act, refuses=lambda run: None)
    made = []
    for text in ("weights", "weights", "Weights"):
        content[0] = text
        execute(check, STAGES, run)
        made.append((read_manifest("check", run) or {})["made"])
    assert made[0] == made[1] != made[2]
