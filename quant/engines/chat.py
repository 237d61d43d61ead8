"""A checkpoint's tokenizer as an engine needs it: prompts of questions, bytes of tokens, tokens that end an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rpam_lite.checkpoint.files import read_json
from rpam_lite.checkpoint.think import ends_in_open_block
from rpam_lite.checkpoint.vocabulary import chat_template, read_tokenizer, tokens_by_id
from rpam_lite.errors import RpamError, one_line


class ChatTokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json and tokenizer_config.json.

    Raises:
        RpamError: The folder or a file of it is missing or damaged, or its decoder is of no known kind.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        if not folder.is_dir():
            raise RpamError(f"{folder}: no such tokenizer folder; name one that holds a tokenizer.json.")
        self.folder = folder
        self.pieces = token_pieces(folder)
        self.end_ids = end_token_ids(folder)
        try:
            # Not AutoTokenizer: a tokenizer_class can name a tokenizer that is then built anew from the
            # vocabulary (R1's Qwen distillates name Llama's). tokenizer.json is taken as it is.
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers raises a bare Exception
            raise RpamError(f"{folder}: transformers can't read its tokenizer ({one_line(error)}).") from None

    @cached_property
    def has_template(self) -> bool:
        """Whether the folder carries a chat template."""
        return chat_template(self.folder) is not None

    def prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the chat template, ready for an answer.

        Raises:
            RpamError: The folder carries no chat template, or the template fails.
        """
        if not self.has_template:
            raise RpamError(
                f"{self.folder}: carries no chat template, so questions can't be asked; "
                "add a chat_template.jinja from the model's own repository."
            )
        messages = [{"role": "user", "content": question}]
        try:
            ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template may do anything
            raise RpamError(f"{self.folder}: its chat template fails ({one_line(error)}); mend it.") from None
        return tuple(ids)

    @cached_property
    def opens_think(self) -> bool:
        """Whether the chat template ends in an open think block, so that answers only close it."""
        return ends_in_open_block(self._decode(self.prompt("")))

    def encode(self, text: str, add_special: bool = False) -> tuple[int, ...]:
        """Token ids of `text`, markers such as <think> parsed; with what the tokenizer itself adds where wanted."""
        return tuple(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special).ids)

    def as_text(self, ids: Sequence[int]) -> str:
        """Text that a server with this tokenizer turns into `ids`.

        A server adds the start token that the tokenizer adds: where the ids begin with it, the text must not.
        """
        text = self._decode(ids)
        if self.encode(text, add_special=True) == tuple(ids):
            return text
        shorter = self._decode(ids[1:])
        return shorter if self.encode(shorter, add_special=True) == tuple(ids) else text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False))


def token_pieces(folder: Path) -> dict[int, bytes]:
    """The bytes of every token of a tokenizer.json, by id.

    Raises:
        RpamError: The file is missing or damaged, or its decoder is of no known kind.
    """
    tokenizer = read_tokenizer(folder)
    kinds = set(_decoder_types(tokenizer.get("decoder")))
    if "ByteLevel" in kinds:
        to_bytes = _byte_level
    elif kinds & {"ByteFallback", "Metaspace"}:
        to_bytes = _sentencepiece
    else:
        raise RpamError(
            f"{folder / 'tokenizer.json'}: its decoder is {sorted(kinds) or 'absent'}, and the bytes of a token are "
            "known of byte-level BPE and SentencePiece only."
        )
    added = {a["id"] for a in tokenizer.get("added_tokens", [])}
    return {i: t.encode() if i in added else to_bytes(t) for i, t in tokens_by_id(folder).items()}


def end_token_ids(folder: Path) -> frozenset[int]:
    """Tokens that end an answer: of generation_config.json (config.json without one), and the tokenizer's own."""
    ids: set[int] = set()
    configs = (folder / "generation_config.json", folder / "config.json")
    if file := next((f for f in configs if f.exists()), None):
        named = read_json(file, "the model's config").get("eos_token_id")
        ids |= set(named if isinstance(named, list) else [] if named is None else [named])
    config = folder / "tokenizer_config.json"
    end = read_json(config, "the tokenizer's config").get("eos_token") if config.exists() else None
    text = end.get("content") if isinstance(end, dict) else end
    return frozenset(ids | {i for i, t in tokens_by_id(folder).items() if t == text})


def _decoder_types(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder:
        yield str(decoder.get("type"))
        for part in decoder.get("decoders", []):
            yield from _decoder_types(part)


def _byte_alphabet() -> dict[str, int]:
    """Byte by the character that stands for it in byte-level BPE (GPT-2): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    return bytes(_BYTE_OF[c] for c in token) if all(c in _BYTE_OF for c in token) else token.encode()


def _sentencepiece(token: str) -> bytes:
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode()
