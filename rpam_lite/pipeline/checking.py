"""The check stage, and `rpam check` alone: every finding at once."""

from __future__ import annotations

import json
from pathlib import Path

from rpam_lite.checkpoint.files import write_json
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Run
from rpam_lite.recipe import Recipe
from rpam_lite.run_files import FINDINGS

EXIT_CODES = {"INFO": 0, "WARNING": 3, "ERROR": 1}


def run_check(run: Run) -> None:
    """Print every finding; stop if one is an error."""
    from rpam_lite.preflight import check

    findings = check(run.recipe, run.folder)
    for finding in findings:
        run.say(str(finding))
    write_json(run.folder / FINDINGS, {"version": 2, "findings": [vars(f) for f in findings]})
    errors = sum(f.level == "ERROR" for f in findings)
    if errors:
        raise RpamError(f"{errors} of {len(findings)} findings above are errors; nothing was started.")


def check_alone(recipe: Recipe, runs: Path, as_json: bool) -> int:
    """Print every finding, as lines or as one JSON object; nothing is written.

    Returns:
        The exit code: that of the gravest finding.
    """
    from rpam_lite.pipeline.parents import findings_of
    from rpam_lite.preflight.findings import worst

    findings = findings_of(recipe, runs / recipe.name)
    gravest = worst(findings)
    if as_json:
        told = {"version": 2, "recipe": recipe.name, "worst": gravest, "findings": [vars(f) for f in findings]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(finding)
        print(f"{sum(f.level == 'ERROR' for f in findings)} errors, {len(findings)} findings")
    return EXIT_CODES[gravest]
