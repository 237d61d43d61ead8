"""tokenizer.json of a real model, put together again from llama.cpp's vocabulary-only GGUF files."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CONTROL, USER_DEFINED = 3, 4
# What DeepSeek-R1-Distill-Qwen puts on Qwen's ids.
R1_TOKENS = {
    151643: "<｜end▁of▁sentence｜>",
    151644: "<｜User｜>",
    151645: "<｜Assistant｜>",
    151646: "<｜begin▁of▁sentence｜>",
    151647: "<|EOT|>",
    151648: "<think>",
    151649: "</think>",
}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@cache
def arrays(file: Path) -> dict[str, list[Any]]:
    """The arrays of a GGUF file's metadata (the gguf package takes half a minute for the merges)."""
    data, place = file.read_bytes(), 24
    found: dict[str, list[Any]] = {}

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(form)
        return int(value)

    def string() -> str:
        nonlocal place
        length = number("Q")
        place += length
        return data[place - length : place].decode("utf-8")

    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key, kind = string(), number("I")
        if kind == 9:
            kind, count = number("I"), number("Q")
            if kind == 8:
                found[key] = [string() for _ in range(count)]
            else:
                found[key] = [number("i") for _ in range(count)] if kind == 5 else []
                place += 0 if kind == 5 else count * _SIZES[kind]
        elif kind == 8:
            string()
        else:
            place += _SIZES[kind]
    return found


def write_tokenizer(folder: Path, file: Path, replaced: dict[int, str] | None = None, bos: str | None = None) -> None:
    """tokenizer.json and tokenizer_config.json as the model's own are.

    Args:
        folder: Where they go.
        file: Vocabulary of llama.cpp.
        replaced: Added tokens under other strings.
        bos: Token that is put before every text.
    """
    raw = arrays(file)
    texts = raw["tokenizer.ggml.tokens"]
    types = raw["tokenizer.ggml.token_type"]
    llama3 = "llama" in file.name
    named = {i: t for i, t in enumerate(texts) if not t.startswith("[PAD")}
    added = {i: t for i, t in named.items() if types[i] in (CONTROL, USER_DEFINED)} | (replaced or {})
    special = {i: t not in ("<think>", "</think>") for i, t in added.items()}
    normal = {t: i for i, t in named.items() if i not in added}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": t, "special": special[i], "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, t in added.items()
        ],
        "normalizer": None if llama3 else {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": LLAMA3_SPLIT if llama3 else QWEN2_SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": llama3,
            "vocab": normal,
            "merges": [m.split(" ") for m in raw["tokenizer.ggml.merges"]],
        },
    }
    if bos is not None:
        (number,) = [i for i, t in added.items() if t == bos]
        first = {"SpecialToken": {"id": bos, "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        }
    eos = added[128001 if llama3 else 151643]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos} | dict.fromkeys(
        ("eos_token", "pad_token", "unk_token"), eos
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def vectors(file: Path) -> list[tuple[str, list[int]]]:
    """Texts and their token ids."""
    texts = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(n) for n in line.split()]) for text, line in zip(texts, lines, strict=False)]
