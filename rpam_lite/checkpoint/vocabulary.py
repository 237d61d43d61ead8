"""Vocabularies compared by token string: the same id can mean another token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import read_json
from rpam_lite.checkpoint.think import ends_in_open_block
from rpam_lite.errors import RpamError


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json.

    Raises:
        RpamError: Missing, no JSON, or without a vocabulary.
    """
    tokenizer = read_json(folder / "tokenizer.json", "the tokenizer")
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise RpamError(f"{folder / 'tokenizer.json'}: has no `model.vocab`; restore the original file.")
    added = tokenizer.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(a, dict) and {"id", "content"} <= a.keys() for a in added):
        raise RpamError(f"{folder / 'tokenizer.json'}: `added_tokens` is no list of tokens; restore the original file.")
    return tokenizer


def tokens_by_id(folder: Path) -> Mapping[int, str]:
    """Every token string of a checkpoint's tokenizer.json, by id.

    Raises:
        RpamError: As `read_tokenizer`.
    """
    file = folder / "tokenizer.json"
    told = file.stat() if file.exists() else None
    return _tokens_by_id(folder.absolute(), told and (told.st_mtime_ns, told.st_size))


@lru_cache(maxsize=4)  # a large vocabulary takes a second to read, and one command asks several times
def _tokens_by_id(folder: Path, _unchanged: tuple[int, int] | None) -> Mapping[int, str]:
    tokenizer = read_tokenizer(folder)
    by_id = {id_: text for text, id_ in tokenizer["model"]["vocab"].items()}
    by_id.update({added["id"]: added["content"] for added in tokenizer.get("added_tokens", [])})
    return by_id


def differing_tokens(a: Mapping[int, str], b: Mapping[int, str]) -> list[int]:
    """Ids whose token string differs, or that only one side has, ascending."""
    return sorted(i for i in a.keys() | b.keys() if a.get(i) != b.get(i))


def opens_think_block(template: str, folder: Path) -> bool:
    """Whether the prompt that a chat template makes of one question ends inside a think block.

    Raises:
        RpamError: The template fails.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: ""
    try:
        prompt = environment.from_string(template).render(
            messages=[{"role": "user", "content": "1 + 1?"}],
            add_generation_prompt=True,
            bos_token="",
            eos_token="",
        )
    except Exception as error:  # a template may do anything
        raise RpamError(f"{folder}: its chat template fails on a plain question ({error}); mend it.") from None
    return ends_in_open_block(prompt)


def chat_template(folder: Path) -> str | None:
    """The chat template, from chat_template.jinja or tokenizer_config.json; None without one."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = read_json(folder / "tokenizer_config.json", "the tokenizer's config").get("chat_template")
    return template if isinstance(template, str) else None
