"""tokenizer.json as the metadata that llama.cpp tokenizes with (byte-level BPE)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import gguf

from rpam_lite.checkpoint.files import read_json
from rpam_lite.checkpoint.vocabulary import chat_template, read_tokenizer
from rpam_lite.errors import RpamError

# Text that llama.cpp's converter (MIT licence) tells tokenizers apart by.
PROBE = Path(__file__).with_name("probe.txt")
# sha256 of a pre-tokenizer's split expression -> llama.cpp's name for it (tokenizer.ggml.pre).
PRE_TOKENIZERS = {
    "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e": "qwen2",
    "d98f9631be1e9607a9848c26c1f9eac1aa9fc21ac6ba82a2fc0741af9780a48f": "llama-bpe",
}
# Names that llama.cpp splits alike, by the sha256 of the token ids of PROBE: what its converter goes by.
PROBED = {
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": ("qwen2", "qwen2"),
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": ("qwen2", "qwen2"),
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": ("qwen2", "deepseek-r1-qwen"),
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": ("llama-bpe", "llama-bpe"),
}
# llama.cpp treats these as control tokens whatever the tokenizer says of them.
_LOOKS_SPECIAL = re.compile(r"^(<\|.*\|>|<｜.*｜>)$", re.DOTALL)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int, space_prefix: bool = False) -> None:
    """Write every tokenizer key.

    Args:
        writer: Where the metadata goes.
        folder: Checkpoint folder with tokenizer.json and tokenizer_config.json.
        rows: Rows of the embedding; ids without a token become unused `[PAD...]` entries.
        space_prefix: Write `add_prefix_space` of tokenizer_config.json, where it is there.

    Raises:
        RpamError: The tokenizer is no byte-level BPE, its split expression is unknown, or it has
            an id beyond the embedding.
    """
    tokens, types, pre = check_tokenizer(folder, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(probed_name(pre, folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True)
    special.chat_template = chat_template(folder)
    special.add_to_gguf(writer, quiet=True)
    if "bos" not in special.add_special_token:
        writer.add_add_bos_token(False)
    prefix = read_json(folder / "tokenizer_config.json", "the tokenizer's config").get("add_prefix_space")
    if space_prefix and prefix is not None:
        writer.add_add_space_prefix(bool(prefix))


def check_tokenizer(folder: Path, rows: int) -> tuple[list[str], list[int], str]:
    """Tokens, their types, and the split expression's name, or the error that the export would raise."""
    tokenizer = read_tokenizer(folder)
    if tokenizer["model"].get("type") != "BPE":
        raise RpamError(f"{folder / 'tokenizer.json'}: model type is not BPE; only byte-level BPE can be exported.")
    return *tokens_and_types(tokenizer, rows, folder), pre_tokenizer_name(tokenizer, folder)


def tokens_and_types(tokenizer: dict[str, Any], rows: int, folder: Path) -> tuple[list[str], list[int]]:
    """The token strings by id, and llama.cpp's type of each, `rows` of both."""
    text_of = {id_: text for text, id_ in tokenizer["model"]["vocab"].items()}
    type_of = dict.fromkeys(text_of, int(gguf.TokenType.NORMAL))
    for added in tokenizer.get("added_tokens", []):
        text_of[added["id"]] = added["content"]
        control = added["special"] or _LOOKS_SPECIAL.match(added["content"])
        kind = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        type_of[added["id"]] = int(kind)
    if max(text_of) >= rows:
        raise RpamError(
            f"{folder / 'tokenizer.json'}: token id {max(text_of)} lies beyond the embedding's {rows} rows; "
            "the tokenizer belongs to another checkpoint."
        )
    unused = int(gguf.TokenType.UNUSED)
    return (
        [text_of.get(i, f"[PAD{i}]") for i in range(rows)],
        [type_of.get(i, unused) for i in range(rows)],
    )


def pre_tokenizer_name(tokenizer: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for the tokenizer's split expression.

    A wrong name would tokenize differently without any error, so an unknown one is refused.
    """
    pre = tokenizer.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    expressions = [p["pattern"]["Regex"] for p in parts if p.get("type") == "Split" and "Regex" in p["pattern"]]
    digest = hashlib.sha256("".join(expressions).encode()).hexdigest()
    if digest not in PRE_TOKENIZERS:
        raise RpamError(
            f"{folder / 'tokenizer.json'}: its split expression {expressions!r} is unknown, so llama.cpp would "
            f"tokenize differently; known are those of {', '.join(PRE_TOKENIZERS.values())}. Restore the "
            "tokenizer.json of the original model."
        )
    return PRE_TOKENIZERS[digest]


def probed_name(name: str, folder: Path) -> str:
    """The name that llama.cpp's converter gives the same tokenizer; `name` where it knows it as none.

    Raises:
        RpamError: The tokenizer splits as one, and its token ids are those of a model that splits as another.
    """
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROBE.read_text(encoding="utf-8")).ids
    family, known = PROBED.get(hashlib.sha256(str(ids).encode()).hexdigest(), (name, name))
    if family != name:
        raise RpamError(
            f"{folder / 'tokenizer.json'}: splits text as {name} does, and its token ids are those of {known}; "
            "restore the tokenizer.json of the original model."
        )
    return known
