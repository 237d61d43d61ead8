"""`rpam publish`: merged checkpoint, GGUF files, card and report of a finished run to the hub.

The checkpoint and the report go to user/name, the GGUF files to user/name-GGUF: there the hub's page shows them as
quantizations of the merge, llama.cpp and Ollama find a file by its type, and whoever loads the checkpoint downloads
none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rpam_lite import __version__
from rpam_lite.checkpoint.hub import readable_name
from rpam_lite.checkpoint.publish import Repository, check_name, check_token, licence_on_hub, upload
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.artefacts import gguf_files, gguf_stage, imatrix_file, merged_folder
from rpam_lite.pipeline.ollama import modelfile_of
from rpam_lite.pipeline.ollama import settings as ollama_settings
from rpam_lite.pipeline.reporting import CARD, gguf_card_file, merge_card_file
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.trip import require_files
from rpam_lite.pipeline.using import use_on_hub
from rpam_lite.recipe import Recipe
from rpam_lite.report.commands import Use
from rpam_lite.report.data import Licence, Parent
from rpam_lite.report.licences import UNKNOWN, merged_licence, read_licence, what_follows
from rpam_lite.report.published import published_gguf, published_merge
from rpam_lite.run_files import COEFFICIENTS, DIVERGENCE, EVALUATION, MANIFEST, USE, VERIFIED

PARTS = ("merged", "gguf", "report")
_REPORT_FILES = (COEFFICIENTS, EVALUATION, DIVERGENCE, VERIFIED)
_TEXT = (".md", ".html", ".json", "")


def parts_of(text: str) -> list[str]:
    """The parts that --include names.

    Raises:
        RpamError: It names another one, or none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or set(parts) - set(PARTS):
        raise RpamError(f"--include {text}: must be some of {', '.join(PARTS)}, with commas between them.", code="E02")
    return parts


def publish(
    run: Run,
    to: str,
    parts: Sequence[str],
    private: bool,
    dry_run: bool,
    say: Callable[[str], None],
    license_id: str = "",
) -> None:
    """Upload a finished run, or say what would be.

    Args:
        run: The run.
        to: Repository of the checkpoint, user/name.
        parts: Of PARTS.
        private: Whether only the owner may see the repositories.
        dry_run: Only list the files; nobody is contacted.
        say: Told what happens.
        license_id: What the cards say, where it is settled; that of the parents without it.

    Raises:
        RpamError: The run is not finished or was changed since, the token may not write, or the hub refuses.
    """
    check_name(to)
    for part in parts:
        for stage in _made_by(part, run.recipe):
            require_files(stage, "publish", run)
    if not dry_run:
        check_token([to])
    licence = _licence(run, ask_hub=not dry_run, say=say)
    if license_id:
        licence = Licence(license_id.lower(), found="--license")
    elif licence.id == UNKNOWN:
        say("WARNING: the card names no licence; settle it and name it with --license before others use it")
    repositories = repositories_of(run, to, parts, licence)
    for repository in repositories:
        _warn_of_places(repository, run, say)
    if dry_run:
        for repository in repositories:
            say(listing(repository))
        say("nothing was sent: this is a dry run")
        return
    for repository in repositories:
        say(f"there now: {upload(repository, private, f'{run.recipe.name}, by rpam_lite {__version__}', say)}")


def _made_by(part: str, recipe: Recipe) -> tuple[str, ...]:
    """The stages whose files a part is made of; the report stage writes the card of the GGUF files."""
    return {"merged": ("merge",), "gguf": (gguf_stage(recipe), "report"), "report": ("report",)}[part]


def repositories_of(run: Run, to: str, parts: Sequence[str], licence: Licence) -> list[Repository]:
    """What goes where."""
    gguf_repository = f"{to}-GGUF"
    use = use_on_hub(run, to, gguf_repository)
    repositories = []
    files: dict[str, Path] = {}
    texts: dict[str, str] = {}
    if "report" in parts:
        folder = run.of("report")
        # use.md names places on this machine; the card has its commands.
        left = (folder / MANIFEST, run.folder / USE)
        names = [file.name for file in folder.iterdir() if file not in left]
        files |= {f"report/{name}": folder / name for name in sorted(names)}
        there = [run.folder / name for name in _REPORT_FILES if (run.folder / name).is_file()]
        files |= {f"report/{file.name}": file for file in there}
    if "merged" in parts:
        merged = sorted(merged_folder(run).iterdir())
        files |= {file.name: file for file in merged if file.is_file() and file.name != CARD}
        card = merge_card_file(run).read_text(encoding="utf-8")
        texts[CARD] = published_merge(card, use, licence, "report" in parts)
    if files:
        repositories.append(Repository(to, files, texts))
    if "gguf" in parts:
        repositories.append(_gguf_repository(run, gguf_repository, use, licence))
    return repositories


def _gguf_repository(run: Run, name: str, use: Use, licence: Licence) -> Repository:
    models = gguf_files(run)
    files = {file.name: file for file in models}
    files |= {modelfile_of(file).name: modelfile_of(file) for file in models if modelfile_of(file).is_file()}
    if run.recipe.quantize.imatrix and (matrix := imatrix_file(run)).is_file():
        files[matrix.name] = matrix
    settings = ollama_settings(run)
    # For `ollama run hf.co/...`, which reads no Modelfile.
    texts = {"params": json.dumps({**settings.parameters, "stop": list(settings.stops)}, ensure_ascii=False) + "\n"}
    if settings.system:
        texts["system"] = settings.system
    texts[CARD] = published_gguf(gguf_card_file(run).read_text(encoding="utf-8"), use, licence)
    return Repository(name, files, texts)


def listing(repository: Repository) -> str:
    """Every file with its size."""
    sizes = repository.sizes()
    lines = [f"{size:>16,}  {place}" for place, size in sizes.items()]
    return "\n".join([f"{repository.name}:", *lines, f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files"])


def _licence(run: Run, ask_hub: bool, say: Callable[[str], None]) -> Licence:
    """The merge's; says what is known of the parents', and what follows."""
    parents = [_parent(role, getattr(run.recipe.parents, role), ask_hub) for role in ("long", "short")]
    say(f"licences, of which both parents' apply to the merge: {' '.join(what_follows(parents))}")
    return merged_licence(parents)


def _parent(role: str, folder: Path, ask_hub: bool) -> Parent:
    """A parent with its licence: as its own files tell, or else as the hub does."""
    licence, hub_id = read_licence(folder), readable_name(folder)
    if licence.id == UNKNOWN and ask_hub and "/" in hub_id and (told := licence_on_hub(hub_id)):
        licence = Licence(told, found="the hub")
    return Parent(role, hub_id, "", licence)


def _warn_of_places(repository: Repository, run: Run, say: Callable[[str], None]) -> None:
    """What would tell others the folders of this machine."""
    places = [str(Path.home()), str(run.folder.resolve())]
    texts = {
        name: (file.read_text(encoding="utf-8", errors="replace"), f"look at {file}")
        for name, file in repository.files.items()
        if file.suffix in _TEXT or file.name.startswith("Modelfile")
    }
    made = {name: (text, "mend what it is made from") for name, text in repository.texts.items()}
    for name, (text, mend) in (texts | made).items():
        if any(place in text for place in places):
            say(f"WARNING: {name} names folders of this machine; {mend} before others see it")
