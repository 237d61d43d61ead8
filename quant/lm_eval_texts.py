"""Texts for the evaluation harness: the tokenizer and chat template of an engine, and the scoring of given tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.engines import Engine
from quant.engines.llama_cpp import LlamaCppEngine
from quant.logits import sequence_logits
from rpam_lite.errors import RpamError

Turns = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Texts:
    """A model's tokenizer and chat template.

    Attributes:
        model: As errors call it.
        encode: Token ids of a text, markers such as <think> parsed, nothing added.
        render: Turns, and whether an answer is to follow, to text.
        template: The chat template; None without one.
        begin: The token that the tokenizer puts before every text; None if it puts none.
        end: The token that ends an answer.
    """

    model: str
    encode: Callable[[str], tuple[int, ...]]
    render: Callable[[Turns, bool], str]
    template: str | None
    begin: int | None
    end: int

    def chat(self, turns: Turns, answer_follows: bool) -> str:
        """Turns as text, ready for an answer, or with the last turn left open.

        Raises:
            RpamError: There is no chat template, or it fails.
        """
        if self.template is None:
            raise RpamError(f"{self.model}: carries no chat template; evaluate it with chat=False.")
        try:
            text = self.render(turns, answer_follows)
        except Exception as error:  # a template may do anything
            raise RpamError(f"{self.model}: its chat template fails ({error}); evaluate it with chat=False.") from None
        if answer_follows:
            return text
        begun = turns[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]


def texts_of(engine: Engine, tokenizer: str | Path | None = None) -> Texts:
    """The tokenizer and chat template of an engine; of one that chooses between two ways, those of the long way.

    Args:
        engine: A GGUF file, a folder, or siblings of these; any other with `tokenizer`.
        tokenizer: Folder to take them from instead.

    Raises:
        RpamError: The engine has none.
    """
    if tokenizer is not None:
        return _of_folder(Path(tokenizer))
    if (long := getattr(engine, "long", None)) is not None:
        return texts_of(long.engine)
    if isinstance(engine, LlamaCppEngine):
        return _of_gguf(engine)
    if isinstance(folder := getattr(engine, "folder", None), Path):
        return _of_folder(folder)
    raise RpamError(f"{engine.name}: tells no tokenizer, which the harness needs; name a folder that holds one.")


def score(engine: LlamaCppEngine, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of a continuation behind its context, and whether greedy decoding would give it.

    Args:
        engine: The loaded file; it computes as llama.cpp's tools do by default.
        context: Token ids, at least one.
        continuation: Token ids.
    """
    tokens = [*context, *continuation]
    first = len(context) - 1
    total, greedy, position = 0.0, True, len(context)
    for rows in sequence_logits(engine, tokens[:-1], first, exact=False) if continuation else ():
        following = tokens[position : position + len(rows)]
        wide = rows.astype(np.float64)
        top = wide.max(1)
        chosen = wide[np.arange(len(rows)), following]
        total += float((chosen - top - np.log(np.exp(wide - top[:, None]).sum(1))).sum())
        greedy = greedy and bool((wide.argmax(1) == following).all())
        position += len(rows)
    return total, greedy


def _of_gguf(engine: LlamaCppEngine) -> Texts:
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    vocab = llama_cpp.llama_model_get_vocab(engine.handle)
    template = engine.metadata("tokenizer.chat_template")
    begin, end = llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_eos(vocab)
    named = {
        "bos_token": llama_cpp.llama_vocab_get_text(vocab, begin).decode() if begin >= 0 else "",
        "eos_token": llama_cpp.llama_vocab_get_text(vocab, end).decode() if end >= 0 else "",
    }

    def render(turns: Turns, answer_follows: bool) -> str:
        form = Jinja2ChatFormatter(template=template or "", add_generation_prompt=answer_follows, **named)
        return str(form(messages=[dict(turn) for turn in turns]).prompt)

    adds = bool(llama_cpp.llama_vocab_get_add_bos(vocab)) and begin >= 0
    return Texts(str(engine.path), engine.tokenize, render, template, begin if adds else None, end)


def _of_folder(folder: Path) -> Texts:
    from transformers import PreTrainedTokenizerFast

    from quant.engines.chat import ChatTokenizer
    from rpam_lite.checkpoint.vocabulary import chat_template

    ours = ChatTokenizer(folder)
    theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if not ours.end_ids:
        raise RpamError(f"{folder}: names no token that ends an answer; add eos_token to its tokenizer_config.json.")

    def render(turns: Turns, answer_follows: bool) -> str:
        return str(theirs.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answer_follows))

    plain, added = ours.encode("a"), ours.encode("a", add_special=True)
    begin = added[0] if added[:1] != plain[:1] else None
    end = theirs.eos_token_id
    return Texts(
        str(folder), ours.encode, render, chat_template(folder), begin, min(ours.end_ids) if end is None else end
    )
