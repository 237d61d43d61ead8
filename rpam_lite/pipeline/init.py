"""`rpam init`: a first recipe for two models, from what their configs say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import adapter_base, is_adapter, read_json, write_text
from rpam_lite.checkpoint.hub import is_hub_id, local_or_hub
from rpam_lite.checkpoint.think import THINK_OPEN
from rpam_lite.checkpoint.vocabulary import chat_template, opens_think_block
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.recipes import as_scalar
from rpam_lite.recipe import Recipe, load_recipe

# Keys that must agree, as preflight says at length.
_SAME = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Tokens left for the prompt where a model's context is short.
_PROMPT = 256
# Questions drawn of a data set, where it is named without a number.
_CALIBRATION, _HELD_OUT = 300, 200


@dataclass(frozen=True)
class Wishes:
    """What a first recipe is made of; paths as the user gave them, from the folder that the command runs in.

    `questions` and `held_out` are files, or data sets by name, as gsm8k:train.
    """

    long: str
    short: str
    questions: str
    held_out: str
    base: str = ""


def write_first_recipe(file: Path, wishes: Wishes) -> list[str]:
    """Write a commented recipe that names only what differs from the defaults.

    Args:
        file: Where to; its stem becomes the recipe's name.
        wishes: The models and questions.

    Returns:
        What was noticed, one sentence each.

    Raises:
        RpamError: `file` is there already or its stem can't be a name, or the configs are of two architectures.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise RpamError(f"{file}: a recipe's name ends in .yaml.")
    if file.exists():
        raise RpamError(f"{file}: is there already; choose another name, or delete it first.")
    configs = {name: _config(Path(path)) for name, path in (("long", wishes.long), ("short", wishes.short))}
    _require_one_architecture(wishes, configs)
    write_text(file, "\n".join(_lines(file, wishes, configs)) + "\n")
    try:
        recipe = load_recipe(file)
    except RpamError:
        file.unlink()
        raise
    return list(_noticed(recipe, configs))


def _config(path: Path) -> dict[str, Any] | None:
    """The config of a local checkpoint; None of one on the hub, or of an adapter."""
    if not path.is_dir():
        if not is_hub_id(local_or_hub(Path.cwd(), path)):
            raise RpamError(f"{path}: no such checkpoint folder; give one, or an id on the hub as org/name.")
        return None
    return None if is_adapter(path) else read_json(path / "config.json", "the model's config")


def _require_one_architecture(wishes: Wishes, configs: dict[str, dict[str, Any] | None]) -> None:
    long, short = configs["long"], configs["short"]
    for key in _SAME if long and short else ():
        assert long is not None
        assert short is not None
        if long.get(key) != short.get(key):
            raise RpamError(
                f"{wishes.long} and {wishes.short}: `{key}` is {long.get(key)!r} and {short.get(key)!r}; only models "
                "of one architecture and size merge.",
                code="E03",
            )


def _lines(file: Path, wishes: Wishes, configs: dict[str, dict[str, Any] | None]) -> Iterator[str]:
    folder = file.parent.resolve()
    known = configs["long"] or configs["short"]
    yield "# Merges a Long-CoT and a Short-CoT model; what is not named here stands at its default (docs/recipe.md)."
    yield "# Paths are relative to this file; lambda weights the Long parent: W = S + lambda * (L - S)."
    if known:
        size = ", ".join(f"{key} {known[key]}" for key in _SAME if key in known)
        yield f"# Read from the configs: {size}."
    yield "version: 1"
    yield f"name: {as_scalar(file.stem)} # its run folder is runs/{file.stem}"
    yield ""
    yield "parents: # a folder, or an id on the hub: org/name or org/name@revision"
    yield f"  long: {as_scalar(_placed(wishes.long, folder))}"
    yield f"  short: {as_scalar(_placed(wishes.short, folder))}"
    if wishes.base:
        yield f"  base: {as_scalar(_placed(wishes.base, folder))} # what both were tuned from"
    most = _most_tokens(configs)
    limit = [f"  max_tokens: {most} # the models' context, less {_PROMPT} for the prompt"] if most else []
    yield ""
    yield "label: # which questions deserve long reasoning: both parents answer these"
    yield from _asked(wishes.questions, folder, _CALIBRATION)
    yield from limit
    yield ""
    if _opens_think(Path(wishes.long).expanduser()):
        yield "merge:"
        yield "  think_prefill: drop # a think block that the prompt opens would leave nothing to decide"
        yield ""
    yield "dial: # merges for shares of Long's tokens, compared in `eval`; the one wished for goes on"
    yield "  budgets: [0.65, 0.5]"
    yield "  max_tokens_share: 0.8 # or max_points_below_long: 2"
    yield "  questions: 0 # by the parents' answers; a number measures every merge on so many questions"
    yield ""
    yield "eval: # measured on these, which no stage before has seen"
    yield from _asked(wishes.held_out, folder, _HELD_OUT)
    yield from limit


def _asked(given: str, folder: Path, size: int) -> Iterator[str]:
    """A file, whose questions are told to ask for a box unless they do; or so many questions of a data set."""
    from quant.tasks.benchmarks import MATH_INSTRUCTION, benchmark_named

    if not Path(given).suffix and benchmark_named(given.partition("@")[0]) is not None:
        yield f"  questions: {{{as_scalar(given)}: {size}}} # so many of a data set; `all`, other sets, or a file"
        return
    yield f"  questions: {as_scalar(_placed(given, folder))}"
    if not _ask_for_a_box(Path(given).expanduser()):
        yield f"  instruction: {as_scalar(MATH_INSTRUCTION)} # without a box an answer is wrong"


def _ask_for_a_box(file: Path) -> bool:
    from quant.tasks.questions import read_rows

    try:
        return file.is_file() and any("\\boxed" in str(row.get("question", "")) for _, row in read_rows(file))
    except RpamError:  # `rpam check` says what is wrong with it
        return False


def _opens_think(long: Path) -> bool:
    """Whether the Long parent's template opens the think block; so is assumed where it can't be read yet."""
    if not long.is_dir() or is_adapter(long):
        return True
    template = chat_template(long)
    return template is not None and opens_think_block(template, long)


def _most_tokens(configs: dict[str, dict[str, Any] | None]) -> int | None:
    """Generated tokens that the shorter context leaves room for; None where the default fits."""
    default = int(Recipe.model_fields["label"].annotation.model_fields["max_tokens"].default)  # type: ignore[union-attr]
    contexts = [int(c["max_position_embeddings"]) for c in configs.values() if c and "max_position_embeddings" in c]
    room = min(contexts, default=1 << 30) - _PROMPT
    return max(1, room) if room < default else None


def _placed(given: str, folder: Path) -> str:
    """A path as it must be written in a file of this folder; ids of the hub and names stay."""
    path = Path(given).expanduser()
    if path.is_absolute():
        return str(path)
    is_name = not path.suffix and len(path.parts) == 1
    if not path.exists() and (is_name or is_hub_id(local_or_hub(Path.cwd(), Path(given)))):
        return given
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())


def _noticed(recipe: Recipe, configs: dict[str, dict[str, Any] | None]) -> Iterator[str]:
    for name, config in configs.items():
        path = getattr(recipe.parents, name)
        if path.is_dir() and is_adapter(path):
            over = recipe.parents.base or adapter_base(path, None)
            yield f"{path}: is an adapter over {over}; if that is no folder here, name one as `base` under `parents`."
        elif config is None:
            yield f"{path}: is not read yet; `rpam check` fetches its small files and headers."
    templates = {n: chat_template(getattr(recipe.parents, n)) or "" for n, c in configs.items() if c is not None}
    if len(templates) == 2 and THINK_OPEN in templates["short"] and THINK_OPEN not in templates["long"]:
        yield (
            f"the Short model's chat template names {THINK_OPEN} and the Long one's does not: "
            "are they the wrong way round?"
        )
    for what, path in (("label.questions", recipe.label.questions), ("eval.questions", recipe.eval.questions)):
        if isinstance(path, Path) and not path.exists():
            yield f"{path}: `{what}` is not there yet; JSON lines with `question`, `answer` and, if known, `level`."
