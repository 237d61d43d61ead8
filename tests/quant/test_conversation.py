"""A conversation: think block and answer apart while they come, turns in the model's own template, one context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import llama_cpp
import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from export.gguf.write import write_gguf
from quant.conversation import Conversation, Splitter
from quant.engines import Completion, Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.errors import RpamError
from tests.conftest import ROOT

# As R1's: opens the block itself, and keeps of earlier turns what follows it.
R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[A]{{ m.content.split('</think>')[-1] }}[E]"
    "{% else %}[{{ m.role[0]|upper }}]{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}[{{ m.role[0]|upper }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[A]"
    "{% endif %}"
)


def quiet(part: str, text: str) -> None:
    pass


@pytest.mark.parametrize(
    ("pieces", "opened", "think", "answer"),
    [
        (["<think>", "\n", "a", "b\n", "</think>", "\n\n", "c"], False, "ab\n", "c"),
        (["a ", "b", "</think>", "c"], True, "a b", "c"),
        (["<th", "ink>a</", "thi", "nk>c"], False, "a", "c"),
        (["just ", "c"], False, "", "just c"),
        (["<think>", "never ", "closes </thin"], False, "never closes </thin", ""),
        (["never ", "closes"], True, "never closes", ""),
        (["1 < 2 <", "b> <thin", "g>"], False, "", "1 < 2 <b> <thing>"),
        (["a", "</think>", "c"], False, "a", "c"),
        (["a</think>b<think>c</think>"], True, "a", "b<think>c</think>"),
        (["a<think>b"], True, "a<think>b", ""),
    ],
)
def test_think_block_and_answer_are_told_apart(pieces: list[str], opened: bool, think: str, answer: str) -> None:
    shown: list[tuple[str, str]] = []
    splitter = Splitter(opened, lambda part, text: shown.append((part, text)))
    for piece in pieces:
        splitter.feed(piece.encode())
    splitter.feed(b"", last=True)
    assert splitter.text == {"think": think, "answer": answer}
    assert "".join(text for _, text in shown) == think + answer
    assert all(text for _, text in shown)


def test_a_character_spread_over_tokens_is_shown_whole() -> None:
    shown: list[str] = []
    splitter = Splitter(False, lambda part, text: shown.append(text))
    for byte in "<think>é</think>数🙂".encode():
        splitter.feed(bytes([byte]))
    assert shown == ["é", "数", "🙂"]
    splitter.feed("数".encode()[:2])
    assert shown[3:] == []
    splitter.feed(b"", last=True)
    assert shown[3:] == ["\ufffd"]


class Scripted:
    """An engine that answers what it is told to; a token is a character of the prompt, a string of the answer."""

    def __init__(self, template: str, answers: list[list[str]]) -> None:
        self._format = Jinja2ChatFormatter(template=template, eos_token="[E]", bos_token="")
        self.answers = iter(answers)
        self.prompts: list[str] = []
        self.requests: list[Request] = []

    def open(self, context: int) -> Any:
        return llama_cpp  # never used

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        return str(self._format(messages=list(messages)).prompt)  # type: ignore[arg-type]

    def tokenize(self, text: str) -> tuple[int, ...]:
        self.prompts.append(text)
        return tuple(map(ord, text))

    def stream(self, request: Request, decoder: Any, go_on: Callable[[bytes], bool]) -> Completion:
        self.requests.append(request)
        told: list[bytes] = []
        for piece in next(self.answers)[: request.max_tokens]:
            told.append(piece.encode())
            if not go_on(told[-1]):
                break
        ended = told[-1:] == [b"."]
        return Completion("", (), tuple(told), "stop" if ended else "length", len(told) + ended)


def talk(engine: Scripted, context: int = 1000, **settings: Any) -> Conversation:
    return Conversation(engine, context, Sampling(0.6, seed=5), **settings)  # type: ignore[arg-type]


def test_the_template_says_what_stays_of_earlier_think_blocks() -> None:
    answers = [["2", "+2", "</think>", "\n\n", "four", "."], ["x"]]
    engine = Scripted(R1, answers)
    conversation = talk(engine, system="Be brief")
    turn = conversation.ask("2 + 2?", quiet)
    assert (turn.think, turn.answer, turn.ended, turn.kept) == ("2+2", "four.", "stop", True)
    assert (turn.think_tokens, turn.answer_tokens) == (2, 5)
    conversation.ask("And 3?", quiet)
    assert engine.prompts == [
        "[S]Be brief[U]2 + 2?[A]<think>\n",
        "[S]Be brief[U]2 + 2?[A]\n\nfour.[E][U]And 3?[A]<think>\n",
    ]
    assert [r.sampling.seed for r in engine.requests] == [5, 6]
    engine = Scripted(PLAIN, [["<think>", "hm", "</think>", "four", "."], ["x"]])
    conversation = talk(engine)
    conversation.ask("2 + 2?", quiet)
    conversation.ask("And 3?", quiet)
    assert engine.prompts[1] == "[U]2 + 2?[A]<think>hm</think>four.[U]And 3?[A]"


def test_a_turn_without_an_answer_is_forgotten() -> None:
    engine = Scripted(R1, [["on ", "and ", "on"], ["</think>", "yes", "."], ["</think>", "no", "."]])
    conversation = talk(engine, max_tokens=3)
    turn = conversation.ask("a?", quiet)
    assert (turn.think, turn.answer, turn.ended, turn.kept) == ("on and on", "", "length", False)
    assert (turn.think_tokens, turn.answer_tokens) == (3, 0)
    assert conversation.ask("b?", quiet).kept
    assert engine.prompts[1] == "[U]b?[A]<think>\n"
    conversation.forget()
    conversation.ask("c?", quiet)
    assert engine.prompts[2] == "[U]c?[A]<think>\n"


def test_an_answer_that_was_stopped_stays_as_it_was() -> None:
    engine = Scripted(PLAIN, [["one ", "two ", "three", "."], ["x"]])
    conversation = talk(engine)
    shown: list[str] = []
    turn = conversation.ask("count", lambda part, text: shown.append(text), lambda: len(shown) == 2)
    assert (turn.answer, turn.ended, turn.kept) == ("one two", "stopped", True)
    conversation.ask("more", quiet)
    assert engine.prompts[1] == "[U]count[A]one two [U]more[A]"


def test_a_full_context_is_said() -> None:
    engine = Scripted(PLAIN, [["a"] * 50])
    conversation = talk(engine, context=20)
    turn = conversation.ask("0123456789", quiet)
    assert (turn.ended, turn.answer_tokens) == ("context", 4)
    with pytest.raises(RpamError, match=r"the context of 20 tokens is full: .* has 30; /new begins anew, --context"):
        conversation.ask("more", quiet)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppEngine]:
    source = CheckpointSource(ROOT / "recipes/tiny/long")
    file = tmp_path_factory.mktemp("tiny") / "long.gguf"
    write_gguf(source, source.config, source.folder, file, "F16", "long")
    with LlamaCppEngine(file, 1, threads=1) as engine:
        yield engine


def test_what_is_streamed_is_what_is_generated(tiny: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Tom has 7 apples. He buys 5 more. How many apples does Tom have now?"
    (whole,) = tiny.generate([Request("a", tiny.chat_prompt(question), 320)])
    conversation = Conversation(tiny, 1000, Sampling())
    passes: list[int] = []
    real = llama_cpp.llama_decode

    def decode(context: Any, batch: Any) -> int:
        passes.append(batch.n_tokens)
        return int(real(context, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    shown: list[str] = []
    turn = conversation.ask(question, lambda part, text: shown.append(text))
    assert whole.text.startswith("<think>")
    assert f"<think>\n{turn.think}\n</think>\n\n{turn.answer}".split() == whole.text.split()
    assert turn.think_tokens + turn.answer_tokens == whole.generated
    assert turn.tokens_per_second > 0
    assert len(shown) > 10
    # Of the second prompt only what is new is read: this template keeps all that was generated.
    passes.clear()
    conversation.ask("What is 3 + 4?", quiet)
    assert passes[0] < len(tiny.chat_prompt("What is 3 + 4?")) + 5
    # A conversation begun anew reads the same again, and answers the same.
    conversation.forget()
    assert conversation.ask(question, quiet).answer == turn.answer
    conversation.close()


def test_a_long_prompt_can_be_stopped_while_it_is_read(tiny: LlamaCppEngine) -> None:
    conversation = Conversation(tiny, 4096, Sampling())
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 2

    turn = conversation.ask("1 + 1? " * 600, quiet, stopped)
    assert (turn.ended, turn.kept, turn.answer_tokens, turn.tokens_per_second) == ("stopped", False, 0, 0.0)
    assert conversation.ask("What is 3 + 4?", quiet).ended == "stop"
    conversation.close()
