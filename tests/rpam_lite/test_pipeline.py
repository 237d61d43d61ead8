"""Stages: what is reused, what runs again, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rpam_lite.pipeline.stage import Run, Stage, execute, fingerprint, is_done
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


def stale(tmp_path: Path, before: Run, after: Run) -> set[str]:
    prints = [{n: fingerprint(s, STAGES, r.recipe) for n, s in STAGES.items()} for r in (before, after)]
    return {name for name in STAGES if prints[0][name] != prints[1][name]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"fit": {"epochs": 3}}, {"check", "fit", "merge", "export", "quantize", "eval", "report"}),
        ({"merge": {"dtype": "bfloat16"}}, {"check", "merge", "export", "quantize", "eval", "report"}),
        ({"quantize": {"types": ["Q6_K"]}}, {"check", "quantize", "eval", "report"}),
        ({"eval": {"questions": "e.jsonl", "max_tokens": 9}}, {"check", "eval", "report"}),
        ({"label": {"questions": "c.jsonl", "samples": 3}}, set(STAGES)),
    ],
)
def test_a_changed_recipe_makes_only_dependent_stages_stale(
    tmp_path: Path, changes: dict[str, object], expected: set[str]
) -> None:
    before = make_run(tmp_path)
    assert stale(tmp_path, before, make_run(tmp_path, **changes)) == expected


def test_a_changed_file_makes_its_readers_stale(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = {n: fingerprint(s, STAGES, run.recipe) for n, s in STAGES.items()}
    (tmp_path / "e.jsonl").write_text("other", encoding="utf-8")
    after = {n: fingerprint(s, STAGES, run.recipe) for n, s in STAGES.items()}
    assert {n for n in STAGES if before[n] != after[n]} == {"check", "eval", "report"}
    (tmp_path / "s" / "model.safetensors").write_text("other", encoding="utf-8")
    changed = {n: fingerprint(s, STAGES, run.recipe) for n, s in STAGES.items()}
    assert all(before[n] != changed[n] for n in STAGES)


def counting_stage(action: Callable[[Run], None], version: int = 1) -> dict[str, Stage]:
    stage = Stage("one", "Test.", (), lambda r: r.name, lambda r: [], action, version=version)
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
