"""The fit of lambda under a dial by decision, and what its merge knows: kept, since other budgets need no other fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import read_json, whole_file, write_json
from rpam_lite.errors import RpamError
from rpam_lite.pipeline import depends
from rpam_lite.pipeline.manifest import read_manifest
from rpam_lite.pipeline.stage import Run, identity, parent_folders
from rpam_lite.run_files import COEFFICIENTS_FILE, FIT_LOG_FILE

if TYPE_CHECKING:
    from rpam_lite.fit.coefficients import Coefficients
    from rpam_lite.fit.decision import DecisionStates

FOLDER = "fits"
FIT_VERSION = 2  # raised when the same recipe must be fitted anew
_STATES = "states.safetensors"


def kept_fit(run: Run) -> tuple[Coefficients, dict[str, Any]] | None:
    """The coefficients and the contents of fit.json; None where they were not fitted yet."""
    from rpam_lite.fit.coefficients import load

    folder = _folder(run)
    if not (folder / FIT_LOG_FILE).exists():
        return None
    try:
        found = load(folder / COEFFICIENTS_FILE), read_json(folder / FIT_LOG_FILE, "the log of the fit")
    except RpamError as error:
        run.say(f"WARNING: {error} It is fitted again.")
        return None
    run.say(f"lambda is fitted already (remove {folder} to fit it again)")
    return found


def keep_fit(run: Run, coefficients: Coefficients, log: dict[str, Any]) -> None:
    """Write both in the place of an earlier fit's."""
    folder = _folder(run)
    for older in (FIT_LOG_FILE, _STATES):  # of other coefficients, if only in their last bits
        (folder / older).unlink(missing_ok=True)
    write_fit(folder, coefficients, log)


def write_fit(folder: Path, coefficients: Coefficients, log: Mapping[str, Any]) -> None:
    """Write coefficients and the log of their fit; the log last, since it says that all is there."""
    from rpam_lite.fit.coefficients import save

    folder.mkdir(parents=True, exist_ok=True)
    save(coefficients, folder / COEFFICIENTS_FILE)
    write_json(folder / FIT_LOG_FILE, log)


def kept_states(run: Run) -> DecisionStates | None:
    """The decision states of the kept fit; None where no pass has made them yet."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from rpam_lite.fit.decision import DecisionStates

    file = _folder(run) / _STATES
    if not file.exists():
        return None
    try:
        found = load_file(file)
    except SafetensorError as error:
        run.say(f"WARNING: {file}: {error}; the merge is run over the questions again.")
        return None
    return DecisionStates(**{name: values.astype("float64") for name, values in found.items()})


def keep_states(run: Run, states: DecisionStates) -> None:
    """Write them in float32, of which they are."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = _folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / _STATES) as part:
        save_file({name: np.ascontiguousarray(values, np.float32) for name, values in vars(states).items()}, part)


def _folder(run: Run) -> Path:
    """Named by all that the fit depends on; which members are asked for is no part of that."""
    recipe = run.recipe
    made = {name: manifest["made"] for name in ("label", "capture") if (manifest := read_manifest(name, run))}
    told = [
        FIT_VERSION,
        made,
        [identity(folder) for folder in parent_folders(recipe)],
        recipe.fit.model_dump(),
        recipe.memory.model_dump(),
        recipe.merge.donor,
        recipe.seed,
        recipe.threads,
        depends.captured(recipe.family),
    ]
    key = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]
    return run.folder / FOLDER / key
