"""The embedded pair's trip, small: its recipe, the commands, what a run leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.rpam_lite.command_line import rpam_here


def rpam(cwd: Path, *arguments: str) -> str:
    result = rpam_here(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def fit_in_two_processes(cwd: Path) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "rpam_lite.fit", "tiny.yaml"],
        cwd=cwd,
        # Passive: four threads on two cores would spin.
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_recipe(folder: Path, **changes: dict[str, Any]) -> None:
    """The shipped recipe with fewer questions, samples and steps."""
    recipe = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    for parent in recipe["parents"]:
        recipe["parents"][parent] = str(ROOT / "recipes" / recipe["parents"][parent])
    for section, every in (("label", 8), ("eval", 25)):
        lines = (ROOT / "recipes" / recipe[section]["questions"]).read_text(encoding="utf-8").splitlines()
        (folder / f"{section}.jsonl").write_text("\n".join(lines[::every]) + "\n", encoding="utf-8")
        recipe[section]["questions"] = f"{section}.jsonl"
    recipe["threads"] = 1
    recipe["label"]["samples"] = 2
    recipe["capture"]["questions_per_class"] = 8
    recipe["fit"] |= {"steps": 2}
    recipe["eval"]["scalar_curve"] = [0.5]
    recipe.pop("dial")  # one fit, but where a test wants a family
    for section, values in changes.items():
        recipe[section] = recipe.get(section, {}) | values
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but for times, and for places on this machine."""
    # findings: what is free now; the page: how long each stage took.
    timed = ("manifest.json", "started.json", "findings.json", "rpam.log", "recipe.yaml", "report.html")
    files = [f for f in run.rglob("*") if f.is_file() and f.name not in timed]
    return {str(f.relative_to(run)): re.sub(rb'"seconds": [-+.e0-9]+', b"", f.read_bytes()) for f in files}
