"""What `rpam chat` talks to: a quantized file of a run, any GGUF file, or a checkpoint, which is exported first."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import parent_gguf
from rpam_lite.pipeline.opening import again, opened
from rpam_lite.pipeline.using import usual_type
from rpam_lite.recipe import Ollama

if TYPE_CHECKING:
    from quant.conversation import Conversation


_DEFAULTS = Ollama()


@dataclass(frozen=True)
class Found:
    """What was named.

    Attributes:
        models: GGUF files or checkpoint folders by name, the one to talk to first, then the parents where they are.
        settings: Of the recipe, or the defaults.
        threads: Of the recipe; None without one.
    """

    models: dict[str, Path]
    settings: Ollama = _DEFAULTS
    threads: int | None = None

    def with_settings(self, given: Mapping[str, float | str | None]) -> Found:
        """The same, with these of the settings in the place of the recipe's; None changes nothing."""
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(self, settings=self.settings.model_copy(update=changes))


def find_model(named: Path, runs: Path, type_name: str | None = None) -> Found:
    """The model that a user names: a GGUF file, a folder of some or of a checkpoint, a run folder, a recipe.

    Args:
        named: What was named.
        runs: Where the runs of recipes lie.
        type_name: Which quantized file of a folder; Q4_K_M without it, or what there is.

    Raises:
        RpamError: There is no such model.
    """
    if named.suffix == ".gguf":
        if type_name is not None:
            raise RpamError(f"--type {type_name}: {named} is one file; leave --type out.")
        return Found({named.stem: named})
    if named.is_dir() and (files := sorted(named.glob("*.gguf"))):
        file = _of_type(files, type_name, named)
        return Found({file.stem: file})
    if (named / "config.json").is_file():
        if type_name is not None:
            raise RpamError(f"--type {type_name}: {named} is a checkpoint, not quantized; leave --type out.")
        return Found({named.name: named})
    run = opened(named, runs)
    made = sorted([*run.of("quantize").glob("*.gguf"), *run.of("export").glob("*.gguf")])
    if not made:
        raise RpamError(f"{run.folder}: holds no GGUF file of the merge yet; `{again('run', named, runs)}` makes it.")
    file = _of_type(made, type_name, run.folder)
    parents = {name: parent_gguf(run, name) for name in ("long", "short")}
    there = {name: path for name, path in parents.items() if path.is_file()}
    return Found({file.stem: file, **there}, run.recipe.ollama, run.recipe.engine_threads)


def _of_type(files: list[Path], type_name: str | None, folder: Path) -> Path:
    """The file of a type, by the end of its name."""
    by_type = {re.split(r"[-.]", file.stem)[-1].upper(): file for file in files}
    by_type.pop("IMATRIX", None)
    wanted = type_name.upper() if type_name else usual_type(tuple(by_type))
    if wanted not in by_type:
        there = ", ".join(by_type) or "none"
        raise RpamError(f"{folder}: of GGUF files it has {there}, not {wanted}; name one of them with --type.")
    return by_type[wanted]


@contextmanager
def conversations(
    found: Found,
    context: int | None,
    max_tokens: int | None,
    threads: int | None,
    seed: int | None,
    compare: bool,
    say: Callable[[str], None],
) -> Iterator[dict[str, Conversation]]:
    """A conversation with the model, and with its parents to compare, by name.

    Args:
        found: What `find_model` gave.
        context: Tokens of all turns together; the recipe's `ollama.num_ctx` if None, but not more than the model has.
        max_tokens: Of a turn; what the context leaves if None.
        threads: CPU threads; the recipe's if None, all cores without one.
        seed: Of the sampling; another one every time if None.
        compare: Whether the parents answer too.
        say: Told what else the user should know.

    Raises:
        RpamError: A model can't be loaded, there are no parents, or there is no memory.
    """
    from quant.conversation import Conversation
    from quant.engines import Sampling
    from quant.engines.llama_cpp import LlamaCppEngine

    settings = found.settings
    seed = secrets.randbits(32) if seed is None else seed
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, seed)
    chosen = dict(found.models if compare else [next(iter(found.models.items()))])
    if compare and len(chosen) < 3:
        raise RpamError(
            "--compare: the parents' GGUF files are not there; they lie in the run folder of a recipe whose label "
            "stage is done."
        )
    threads = threads or found.threads or os.cpu_count() or 1
    with ExitStack() as stack:
        talks = {}
        for name, path in chosen.items():
            file = path if path.suffix == ".gguf" else _exported(path, stack, say)
            engine = stack.enter_context(LlamaCppEngine(file, 1, threads))
            if context is not None and context > engine.trained_context:
                say(f"note: {name} was made for {engine.trained_context} tokens; beyond them its answers get worse")
            size = context or min(settings.num_ctx, engine.trained_context)
            talks[name] = Conversation(engine, size, sampling, max_tokens, settings.system)
            stack.callback(talks[name].close)
        yield talks


def _exported(folder: Path, stack: ExitStack, say: Callable[[str], None]) -> Path:
    """A checkpoint as a GGUF file that is gone in the end."""
    from export.gguf.write import write_gguf
    from rpam_lite.checkpoint.source import CheckpointSource

    source = CheckpointSource(folder)
    file = Path(stack.enter_context(TemporaryDirectory())) / f"{folder.name}.gguf"
    say(f"exporting {folder} to a GGUF file that is not kept")
    write_gguf(source, source.config, folder, file, "F16", folder.name)
    return file
