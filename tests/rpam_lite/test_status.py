"""`status`, `run --dry-run` and `clean` on runs whose stages are stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from rpam_lite.checkpoint.files import RUN_RECIPE, locked
from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.pipeline import trip
from rpam_lite.pipeline.opening import opened
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.status import status_of
from rpam_lite.recipe import load_recipe
from tests.rpam_lite.finished import do, finish, folder_contents
from tests.rpam_lite.test_pipeline import make_run
from tests.rpam_lite.test_recipe import MINIMAL


def rpam(*arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=answer, env={"COLUMNS": "200"})


def change(run: Run, **changes: object) -> Path:
    file = run.folder.parents[1] / "mine.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes), encoding="utf-8")
    return file


def whys(run: Run) -> dict[str, tuple[str, str]]:
    return {stage.stage: (stage.state, stage.why) for stage in status_of(run).stages}


def json_of(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_a_finished_run_is_done_and_costs_what_its_manifests_say(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    before = folder_contents(run.folder)
    told = json_of(rpam("status", tmp_path / "mine.yaml", "--runs", tmp_path / "runs", "--json"))
    assert [stage["state"] for stage in told["stages"]] == ["done"] * 11  # type: ignore[attr-defined]
    assert told["next"] is None
    assert told["bytes"] == sum(len(text) for text in before.values())
    assert json_of(rpam("status", run.folder, "--json"))["stages"] == told["stages"]
    assert "all done" in rpam("status", run.folder).output
    assert folder_contents(run.folder) == before


def test_a_run_that_was_never_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    told = json_of(rpam("status", tmp_path / "mine.yaml", "--runs", tmp_path / "runs", "--json"))
    assert {stage["state"] for stage in told["stages"]} == {"not done"}  # type: ignore[attr-defined]
    command = f"rpam run {tmp_path / 'mine.yaml'} --runs {tmp_path / 'runs'}"
    assert told["next"] == {"stage": "check", "command": command}
    assert command in rpam("status", tmp_path / "mine.yaml", "--runs", tmp_path / "runs").output
    assert not run.folder.exists()


def test_what_changed_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    changed = Run(load_recipe(change(run, fit={"steps": 3, "ridge": 0.5})), run.folder, run.progress, run.say)
    found = whys(changed)
    assert found["fit"] == ("out of date", "recipe changed: fit.ridge 0.0 -> 0.5, fit.steps 30 -> 3")
    assert found["capture"] == ("done", "")
    assert found["merge"] == ("out of date", "builds on fit")
    assert status_of(changed).next_stage == "check"


def test_changed_inputs_and_lost_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    (tmp_path / "e.jsonl").write_text("other questions", encoding="utf-8")
    (run.of("export") / "mine-f16.gguf").unlink()
    found = whys(run)
    assert found["eval"] == ("out of date", f"inputs changed: {tmp_path / 'e.jsonl'}")
    assert found["export"] == ("out of date", "files missing or damaged: mine-f16.gguf")
    (run.of("merge") / "merge.json").write_text("another merge", encoding="utf-8")
    assert found["label"] == ("done", "")


def test_what_was_made_anew_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    manifest = run.of("label") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"made": "other bytes"}), encoding="utf-8")
    assert whys(run)["capture"] == ("out of date", "other files of label")


def test_an_interrupted_stage_and_one_at_work(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run, until="label")
    manifest = json.loads((run.of("label") / "manifest.json").read_text())
    (run.of("label") / "manifest.json").unlink()
    mark = {key: manifest[key] for key in ("fingerprint", "built_on")}
    (run.of("label") / "started.json").write_text(json.dumps(mark), encoding="utf-8")
    assert whys(run)["label"] == ("interrupted", "goes on where it stopped")
    with locked(run.folder / ".lock", "it"):
        assert whys(run)["label"][0] == "at work"
        assert "another process works there now" in rpam("status", run.folder).output
    (run.of("label") / "started.json").write_text('{"fingerprint": "other"}', encoding="utf-8")
    assert "starts anew" in whys(run)["label"][1]


def test_the_kept_recipe_is_the_recipe(tmp_path: Path) -> None:
    run = make_run(tmp_path, fit={"preset": "paper"}, memory={"host": "6GiB"}, parents={"long": "l", "short": "org/s"})
    finish(run, until="check")
    kept = load_recipe(run.folder)
    assert kept == load_recipe(tmp_path / "mine.yaml")
    assert "steps" not in (run.folder / RUN_RECIPE).read_text()
    assert opened(run.folder, Path("elsewhere")).folder == run.folder


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = rpam("status", tmp_path)
    assert isinstance(result.exception, RpamError)
    assert "no run folder" in str(result.exception)


def test_a_dry_run_says_what_would_run_and_touches_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    before = folder_contents(run.folder)
    change(run, fit={"steps": 3})
    output = rpam("run", tmp_path / "mine.yaml", "--runs", tmp_path / "runs", "--dry-run").output
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert "be reused" in rows["capture"]
    assert "fit.steps 30 -> 3" in rows["fit"]
    assert "run, if they change" in rows["merge"]
    assert "9 of 11 stages would run: 0 s when they were done last." in output
    assert "disk and memory: not known, " in output  # the parents of this recipe are no checkpoints
    assert folder_contents(run.folder) == before
    assert "nothing would run" in rpam("run", run.folder, "--dry-run").output


def test_a_dry_run_tells_disk_and_memory(tmp_path: Path, pair: Path) -> None:
    make_run(tmp_path, parents={"long": str(pair / "long"), "short": str(pair / "short")})
    output = rpam("run", tmp_path / "mine.yaml", "--runs", tmp_path / "runs", "--dry-run").output
    assert "time not known" in output
    assert "a run needs about" in output
    assert "questions of 512 tokens need" in output
    assert not (tmp_path / "runs").exists()


def test_clean_deletes_only_what_is_chosen_and_agreed_to(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    before = folder_contents(run.folder)
    assert "nothing deleted" in rpam("clean", run.folder).output
    for answer in ("", "n\n"):
        refused = rpam("clean", run.folder, "--captured", answer=answer)
        assert isinstance(refused.exception, RpamError)
    assert "choose what" in str(rpam("clean", run.folder, "--yes").exception)
    assert folder_contents(run.folder) == before
    assert "freed" in rpam("clean", run.folder, "--captured", answer="y\n").output
    gone = before.keys() - folder_contents(run.folder).keys()
    assert gone == {"capture/layer-000.safetensors", "capture/layers.json"}
    assert "freed" in (run.folder / "rpam.log").read_text()


def test_clean_waits_for_no_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    with locked(run.folder / ".lock", "it"):
        refused = rpam("clean", run.folder, "--everything", "--yes")
    assert "another run works there" in str(refused.exception)
    assert (run.of("merge") / "merge.json").exists()


def test_everything_leaves_what_is_not_ours(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    (run.folder / "thesis.tex").write_text("years", encoding="utf-8")
    assert "it holds thesis.tex" in rpam("clean", run.folder, "--everything", "--yes").output
    assert list(folder_contents(run.folder)) == ["thesis.tex"]
    assert "no such run folder" in str(rpam("clean", tmp_path / "mine.yaml", "--everything").exception)


def ran(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that a run does, each stood in for."""
    done: list[str] = []
    monkeypatch.setattr(trip, "_run", lambda stage, run: (done.append(stage.name), do(stage.name, run)))
    monkeypatch.setattr(trip.stages, "say_closing", lambda run: None)
    trip.run_all(run)
    return done


def test_cleaned_files_are_made_again_only_for_a_stage_that_must_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    finish(run)
    rpam("clean", run.folder, "--captured", "--ggufs", "--yes")
    assert not status_of(run).next_stage
    assert ran(run, monkeypatch) == []
    changed = Run(load_recipe(change(run, fit={"steps": 3})), run.folder, run.progress, run.say)
    assert whys(changed)["capture"] == ("done", "removed by `rpam clean`, and fit needs its files")
    do("check", changed)
    with pytest.raises(RpamError, match="`rpam clean` removed files of stage 'capture'"):
        trip.run_one("fit", changed)
    # The stand-ins make the same bytes, so that nothing above the fit changes but the page, which tells the recipe.
    assert ran(changed, monkeypatch) == ["label", "capture", "fit", "report"]
    assert (run.of("capture") / "layers.json").exists()
    assert not (run.of("export") / "mine-f16.gguf").exists()
