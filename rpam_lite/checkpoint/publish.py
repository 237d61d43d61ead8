"""Files to a repository on the Hugging Face hub, in one commit each.

What the hub has already is not sent again, so that the same call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rpam_lite.errors import RpamError

LOGIN = "run `hf auth login` with a token that may write (https://huggingface.co/settings/tokens)"


@dataclass(frozen=True)
class Repository:
    """What goes into one repository.

    Attributes:
        name: user/name.
        files: Files of this machine by their place there.
        texts: Files that are made for it, by their place.
    """

    name: str
    files: Mapping[str, Path]
    texts: Mapping[str, str]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its place."""
        made = {place: len(text.encode()) for place, text in self.texts.items()}
        return dict(sorted({**{place: file.stat().st_size for place, file in self.files.items()}, **made}.items()))


def check_name(name: str) -> None:
    """Whether a name can be one of a repository on the hub.

    Raises:
        RpamError: It can't.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,90}", name) or ".." in name or "--" in name:
        raise RpamError(f"--to {name}: must be user/name, of letters, digits, '.', '_' and '-'.", code="E02")
    if name.lower().endswith("-gguf"):
        raise RpamError(f"--to {name}: leave -GGUF off; the GGUF files get a repository of that name.", code="E02")


def check_token(names: list[str]) -> None:
    """Whether this machine's token may write to these repositories.

    Raises:
        RpamError: There is no token, the hub does not know it, it can only read, or it is another user's.
    """
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise RpamError(f"this machine has no token for the hub; {LOGIN}.")
    with _errors(names[0]):
        user = HfApi().whoami()
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise RpamError(f"the token of {user['name']} can only read; {LOGIN}.")
    spaces = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    for name in names:
        if name.split("/")[0] not in spaces:
            raise RpamError(f"--to {name}: the token is of {user['name']}, who can write to {', '.join(spaces)}.")


def licence_on_hub(name: str) -> str | None:
    """The licence that a model of the hub names; None without one, or where the hub can't be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from rpam_lite.checkpoint.hub import unreachable

    unanswered: tuple[type[Exception], ...] = (HfHubHTTPError, *unreachable())
    try:
        card = HfApi().model_info(name).card_data
    except unanswered:
        return None
    licence = card.get("license") if card else None
    return licence if isinstance(licence, str) else None


def upload(repository: Repository, private: bool, message: str, say: Callable[[str], None]) -> str:
    """Create a repository if it is not there, and commit its files.

    Args:
        repository: What goes where.
        private: Whether only its owner may see it.
        message: Of the commit.
        say: Told what is sent.

    Returns:
        Its address.

    Raises:
        RpamError: The hub refuses or can't be reached, or shows to all what was to be private.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name, api = repository.name, HfApi()
    with _errors(name):
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if private and not api.model_info(name).private:
            raise RpamError(
                f"{name}: is there already and everybody can see it; make it private in its settings on the hub, "
                "choose another name, or leave --private out."
            )
        contents: dict[str, Path | bytes] = {**repository.files}
        contents |= {place: text.encode() for place, text in repository.texts.items()}
        sizes = repository.sizes()
        say(f"uploading {len(sizes)} files, {sum(sizes.values()) / 1e9:.2f} GB, to {address}")
        operations = [CommitOperationAdd(place, content) for place, content in sorted(contents.items())]
        api.create_commit(name, operations, commit_message=message)
    return address


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """One sentence for everything that can go wrong."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from rpam_lite.checkpoint.hub import unreachable

    broken: tuple[type[Exception], ...] = (*unreachable(), RuntimeError)
    try:
        yield
        return
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        told = " ".join(str(error.server_message or error).split())[:200]
        why = (
            f"the hub refuses the token; {LOGIN}"
            if status == 401
            else f"the hub refuses ({told}); the same command goes on later"
        )
    except LocalTokenNotFoundError:
        why = f"this machine has no token for the hub; {LOGIN}"
    except ValueError as error:  # a card whose front matter the hub does not accept
        why = f"the hub does not accept it ({' '.join(str(error).split())[:300]})"
    except broken as error:
        told = " ".join(str(error).split())[:200]
        why = f"the hub can't be reached, or the upload broke off ({told}); run the same command again, it goes on"
    raise RpamError(f"{name}: {why}.")
