"""Parents on the Hugging Face hub: fetched whole for a run, or only what a check reads.

A recipe names one as `org/name` or `org/name@revision`. For a check the small files are downloaded and of
every safetensors file its header, by range request; the file that stands for it has the real size and
holds nothing else.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rpam_lite.errors import RpamError, one_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*"]
_IN_FOLDERS = ["*/*"]  # other formats of the same weights
# Errors of a disk, not of a network.
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG)


def is_hub_id(path: Path) -> bool:
    """Whether a parent of a recipe is on the hub; local ones are absolute there."""
    return not path.is_absolute()


def local_or_hub(folder: Path, given: Path) -> Path:
    """An absolute path if there is one or if it can be no hub id; else the id as it stands."""
    return given if _ID.fullmatch(str(given)) and not (folder / given).exists() else folder / given


def readable_name(path: Path) -> str:
    """`org/name` of a folder in the hub's cache; else the folder's name."""
    cached = re.fullmatch(r"models--(.+?)--(.+)", path.parent.parent.name)
    return "/".join(cached.groups()) if cached and path.parent.name == "snapshots" else path.name


def fetch_headers(hub_id: str, folder: Path) -> Path:
    """The checkpoint without its weights, into `folder`.

    Returns:
        Its folder, which `CheckpointSource` opens; the values in it are all 0.

    Raises:
        RpamError: The hub can't be reached, has no such model, or keeps it behind a gate.
    """
    from huggingface_hub import HfApi, snapshot_download

    name, revision = _split(hub_id)
    place = folder / name
    with _hub_errors(hub_id):
        api = HfApi()
        info = api.model_info(name, revision=revision)
        snapshot_download(name, revision=info.sha, local_dir=place, allow_patterns=_SMALL, ignore_patterns=_IN_FOLDERS)
        for file in [s.rfilename for s in info.siblings or []]:
            if file.endswith(".safetensors") and "/" not in file:
                found = api.parse_safetensors_file_metadata(name, file, revision=info.sha)
                _write_hollow(place / file, found)
    return place


def _write_hollow(file: Path, found: Any) -> None:
    """A safetensors file with its header only, of its full size but sparse."""
    tensors = {
        name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for name, info in found.tensors.items()
    }
    header = json.dumps({**({"__metadata__": found.metadata} if found.metadata else {}), **tensors}).encode()
    end = max((info.data_offsets[1] for info in found.tensors.values()), default=0)
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + end)


def missing_bytes(hub_id: str) -> int:
    """Bytes that the hub's cache lacks of a checkpoint; 0 where the hub can't be asked.

    Raises:
        RpamError: The hub has no such model, or keeps it behind a gate.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, revision = _split(hub_id)
    with _hub_errors(hub_id):
        try:
            HfApi().model_info(name, revision=revision)
        except HfHubHTTPError:
            raise
        except unreachable():
            return 0
        found = snapshot_download(dry_run=True, **_wanted(hub_id))
    assert isinstance(found, list)
    return sum(file.file_size for file in found if file.will_download)


def fetch(hub_id: str, missing: int, say: Callable[[str], None]) -> Path:
    """The whole checkpoint in the hub's cache; what is there already is not fetched again.

    Args:
        hub_id: Its id.
        missing: What `missing_bytes` gave; 0 reads the cache alone.
        say: Told what is downloaded.

    Raises:
        RpamError: As `fetch_headers`; or the disk has no room for it.
    """
    from huggingface_hub import constants, snapshot_download

    if missing:
        cache = Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
        if free < missing:
            raise RpamError(
                f"{cache}: {missing - free} bytes are missing to download {hub_id}; free some, or set HF_HOME.",
                code="E08",
            )
        say(f"downloading {hub_id}: {missing / 1e9:.2f} GB into {cache}")
    with _hub_errors(hub_id):
        return Path(str(snapshot_download(local_files_only=not missing, **_wanted(hub_id))))


def in_cache(hub_id: str) -> Path | None:
    """The checkpoint's folder in the hub's cache; None if it is not there. The hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(str(snapshot_download(local_files_only=True, **_wanted(hub_id))))
    except LocalEntryNotFoundError:
        return None


def answers(data_set: str) -> bool:
    """Whether the hub answers at all, were it that it has no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(data_set, timeout=10)
    except HfHubHTTPError:
        return True
    except (*unreachable(), OSError):  # type: ignore[misc]
        return False
    return True


def _wanted(hub_id: str) -> dict[str, Any]:
    """Which files make up a checkpoint."""
    name, revision = _split(hub_id)
    patterns = {"allow_patterns": ["*.safetensors", *_SMALL], "ignore_patterns": _IN_FOLDERS}
    return {"repo_id": name, "revision": revision, **patterns}


def _split(hub_id: str) -> tuple[str, str | None]:
    name, _, revision = hub_id.partition("@")
    return name, revision or None


def unreachable() -> tuple[type[Exception], ...]:
    """What is raised where there is no network, or none is wanted."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The first base is the error of whichever HTTP library huggingface_hub uses.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return LocalEntryNotFoundError, ConnectionError, http_error


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """One sentence for everything that can go wrong."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    try:
        yield
    except GatedRepoError:
        why = f"its owner asks for consent; accept it on huggingface.co/{_split(hub_id)[0]} and run `hf auth login`"
    except RevisionNotFoundError:
        why = "the model is on the hub, but not this revision"
    except RepositoryNotFoundError:
        why = "no such folder beside the recipe, and no such model on the hub (a private one needs `hf auth login`)"
    except (SafetensorsParsingError, NotASafetensorsRepoError) as error:
        why = f"its weights are no safetensors that can be read ({one_line(error)})"
    except HfHubHTTPError as error:
        why = f"the hub answered with an error ({one_line(error)}); try again later"
    except Exception as error:
        if getattr(error, "errno", None) in _OF_THIS_MACHINE or not isinstance(error, (*unreachable(), OSError)):
            raise
        cause = one_line(error)
        why = (
            f"no such folder beside the recipe, and the hub can't be reached ({cause}); go online, or name the folder "
            "of a copy"
        )
    else:
        return
    raise RpamError(f"{hub_id}: {why}.")
