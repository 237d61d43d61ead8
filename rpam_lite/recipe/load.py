"""Find a recipe, read it, and tell everything that is wrong with it. Paths in it are relative to its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rpam_lite.checkpoint.files import RUN_LOG, RUN_RECIPE, is_run_folder
from rpam_lite.checkpoint.hub import local_or_hub
from rpam_lite.errors import RpamError
from rpam_lite.recipe.schema import Parents, Recipe
from rpam_lite.recipe.values import QuestionSets, parse_size

_MEMBERS = {"--price": "prices", "--budget": "budgets", "--points": "points"}


def with_dial(recipe: Recipe, members: Mapping[str, str | None], wish: Mapping[str, float | None]) -> Recipe:
    """The recipe with another dial, as the command line gives it.

    Args:
        recipe: What to change.
        members: Numbers with commas between them, by the names of the command's options; None where not given.
        wish: By the names of `dial`; None where not given.

    Raises:
        RpamError: They are not such numbers, or the recipe has no place for them.
    """
    given = {key: _numbers(option, members.get(option)) for option, key in _MEMBERS.items()}
    try:
        dial = {**recipe.dial.model_dump(), "max_tokens_share": None, "max_points_below_long": None}
        return Recipe.model_validate({**vars(recipe), "dial": {**dial, **wish, **given}})
    except ValidationError as error:
        options = {**members, **{f"--{key.replace('_', '-')}": value for key, value in wish.items()}}
        told = " ".join(f"{option} {value}" for option, value in options.items() if value is not None)
        raise RpamError(f"{told}: {_all_mistakes(error)}") from None


def with_device_memory(recipe: Recipe, size: str | None) -> Recipe:
    """The recipe with another `memory.device`, as `--device-memory` gives it; itself where none is given.

    Raises:
        RpamError: It is no size.
    """
    if size is None:
        return recipe
    device = parse_size(size, "--device-memory")
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"device": device})})


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [float(number) for number in text.split(",")] if text is not None else []
    except ValueError:
        raise RpamError(f"{option} {text}: must be numbers with commas between them, as 0.2,0.5.") from None


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; a bare name such as `tiny` finds the recipe that ships with us.

    A run folder stands for the recipe that it was last worked on with.

    Raises:
        RpamError: The file is missing, is not YAML, or has wrong keys or values (all of them named).
    """
    file = find_recipe(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RpamError(f"{file}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise RpamError(f"{file}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise RpamError(f"{file}: holds no recipe; `rpam init` writes one for two models.")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RpamError(f"{file}: {_all_mistakes(error)}") from None
    return _with_absolute_paths(recipe, file.parent.resolve())


def shipped_folder() -> Path:
    """Where the recipes lie that come with us: of the installed wheel, or of the checkout."""
    installed = Path(str(resources.files("rpam_lite"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def find_recipe(path: Path) -> Path:
    """The recipe file: as given, of a run folder, or by name among those that come with us.

    Raises:
        RpamError: There is none.
    """
    if is_run_folder(path):
        return path / RUN_RECIPE
    known = path.suffix in (".yaml", ".yml") or not path.name
    names = [path] if known else [path, path.with_name(f"{path.name}.yaml")]
    for candidate in [*names, *(shipped_folder() / name for name in names if len(name.parts) <= 2)]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise RpamError(f"{path}: is a folder without {RUN_RECIPE} and {RUN_LOG}, so no run folder; name a recipe.")
    raise RpamError(
        f"{path}: no such recipe file or run folder; `rpam recipes ls` lists the recipes that ship with rpam_lite."
    )


def _all_mistakes(error: ValidationError) -> str:
    mistakes = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            mistakes.append(f"unknown key `{place}`{_meant(item['loc'])}")
        elif item["type"] == "missing":
            mistakes.append(f"`{place}` is missing")
        elif item["type"] == "value_error" and isinstance(item["input"], dict):  # a whole section, or the recipe
            mistakes.append(f"{f'`{place}`: ' if place else ''}{item['ctx']['error']}")
        else:
            mistakes.append(f"`{place}` is {item['input']!r}: {item['msg']}")
    return "; ".join(mistakes) + "."


def _meant(place: tuple[int | str, ...]) -> str:
    """The known key that is nearest to an unknown one, as a question."""
    section: Any = Recipe
    for part in place[:-1]:
        section = section.model_fields[part].annotation if hasattr(section, "model_fields") else None
    known = list(section.model_fields) if hasattr(section, "model_fields") else []
    near = get_close_matches(str(place[-1]), known, 1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    parents = recipe.parents
    return recipe.model_copy(
        update={
            "parents": Parents(
                long=local_or_hub(folder, parents.long),
                short=local_or_hub(folder, parents.short),
                base=local_or_hub(folder, parents.base) if parents.base else None,
            ),
            "label": recipe.label.model_copy(update={"questions": _absolute(recipe.label.questions, folder)}),
            "eval": recipe.eval.model_copy(update={"questions": _absolute(recipe.eval.questions, folder)}),
        }
    )


def _absolute(questions: Path | QuestionSets, folder: Path) -> Path | QuestionSets:
    return folder / questions if isinstance(questions, Path) else questions
