"""Prove a written GGUF file before it is called done."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import write_json
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Run

if TYPE_CHECKING:
    from export.gguf.write import GgufType
    from rpam_lite.checkpoint.source import TensorSource

# Beside some of the recipe's own questions.
_AGAIN = "export again, and if it stays so, report it."
_TEXT = "<|im_start|>x<think>\n\n 12 é 漢 </think>"
_QUESTIONS, _SAMPLED = 3, 24


def prove_export(
    run: Run, file: Path, file_type: GgufType, source: TensorSource, config: dict[str, Any], donor: Path
) -> None:
    """Compare a written GGUF file with what it was written from, and keep how beside it.

    Args:
        run: The run.
        file: The file.
        file_type: Its type.
        source: What it was written from.
        config: Its config.
        donor: Folder with its tokenizer.

    Raises:
        RpamError: It differs. The file stays.
    """
    from tokenizers import Tokenizer

    from quant.proof import prove
    from quant.tasks.questions import read_task_file
    from rpam_lite.preflight.questions import task_file
    from rpam_lite.streaming.whole import SMALL_MODEL, logits_of, parameters_of

    texts = [*(q.question for q in read_task_file(task_file(run.recipe.label))[:_QUESTIONS]), _TEXT]
    tokenizer = Tokenizer.from_file(str(donor / "tokenizer.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    reference = logits_of(source, config) if parameters_of(source) <= SMALL_MODEL else None
    proof = prove(file, file_type, texts, ids, reference, run.recipe.engine_threads)
    compared = compare_tensors(file, file_type, source, config, donor, run.recipe.seed)
    told = {"version": 1, "file": file.name, **vars(proof), "values": compared}
    write_json(file.with_name(f"{file.stem}.proof.json"), told)
    logits = "" if proof.difference is None else f", logits within {proof.difference:.1g}"
    run.say(f"{file.name}: proven in llama.cpp on {proof.tokens} tokens{logits}; {compared} values read back")


def compare_tensors(
    file: Path, file_type: GgufType, source: TensorSource, config: dict[str, Any], donor: Path, seed: int
) -> int:
    """Whether every tensor is in the file, in its shape and type, and sampled ones begin as they must.

    Returns:
        How many values were compared, to the bit.

    Raises:
        RpamError: A tensor is missing or differs.
    """
    from export.gguf.write import encode, entries
    from quant.header import read_header

    there = {tensor.name: tensor for tensor in read_header(file).tensors}
    wanted = {entry.name: entry for entry in entries(source, config, donor, file_type)}
    if lone := sorted(there.keys() ^ wanted.keys()):
        raise RpamError(f"{file}: not proven, {lone[0]} is missing or is one too many; {_AGAIN}")
    compared = 0
    chosen = random.Random(seed).sample(sorted(wanted), min(_SAMPLED, len(wanted)))
    for name, entry in wanted.items():
        found = there[name]
        if found.shape != tuple(reversed(entry.shape)) or found.kind != entry.kind:
            raise RpamError(f"{file}: not proven, {name} is {found.kind.name} of shape {found.shape}; {_AGAIN}")
        if name in chosen:
            rows = next(entry.chunks())
            own = bytes(encode(rows, entry))
            with file.open("rb") as stream:
                stream.seek(found.offset)
                if stream.read(len(own)) != own:
                    raise RpamError(f"{file}: not proven, the values of {name} are not the checkpoint's; {_AGAIN}")
            compared += rows.numel()
    return compared
