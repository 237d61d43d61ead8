"""`chat`: talk to a merge at the terminal, think block and answer apart."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rpam_lite.cli.common import RunsOption, app
from rpam_lite.cli.complete import recipes_and_runs
from rpam_lite.errors import RpamError
from rpam_lite.platform import let_lines_be_edited
from rpam_lite.terminal import Interrupted, interrupts_told

if TYPE_CHECKING:
    from quant.conversation import Conversation, Part, Turn

_HELP = (
    "/new begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer; a line that ends in \\ goes on in the next one."
)
_ENDED = {
    "length": "cut off at --max-tokens",
    "context": "cut off: the context is full; /new begins anew, --context makes it larger",
    "stopped": "stopped",
}


@app.command("chat")
def chat_command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN | RECIPE | FILE.gguf | FOLDER", help="what to talk to", autocompletion=recipes_and_runs
        ),
    ],
    runs: RunsOption = Path("runs"),
    type_name: Annotated[
        str | None, typer.Option("--type", help="which quantized file; Q4_K_M if there is one")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy; without it what the recipe says under `ollama`, or 0.6")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="likewise, or 0.95")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="likewise, or 20")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt; likewise, or none")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="of an answer; what the context leaves without it")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens of the conversation; 16384 without it, or what the model has")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the sampling; another one every time without it")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of llama.cpp")] = None,
    once: Annotated[str | None, typer.Option(metavar="QUESTION", help="answer this question and end")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="both parents answer too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a turn and model")] = False,
) -> None:
    """Talk to a merge: its think block, its answer, and the tokens of each.

    Questions are read from standard input, one a line, where that is not a terminal.

    Example: rpam chat recipes/tiny.yaml --type Q8_0 --once "What is 3 + 4?"
    """
    from rpam_lite.pipeline.chatting import conversations, find_model

    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "system": system, "num_ctx": context}
    found = find_model(model, runs, type_name).with_settings(given)
    printer = _Printer(Console(soft_wrap=True, highlight=False), as_json, compare)
    at_terminal = once is None and sys.stdin.isatty()
    with conversations(found, context, max_tokens, threads, seed, compare, _note) as opened:
        if at_terminal:
            _note(f"{', '.join(opened)}. {_HELP}")
        for question in [once] if once is not None else _questions(opened, at_terminal):
            if once is None and not at_terminal:
                printer.echo(question)
            try:
                for name, conversation in opened.items():
                    _ask(name, conversation, question, printer, at_terminal)
            except RpamError as error:
                if not at_terminal:
                    raise
                _note(f"rpam: {error}")


def _ask(name: str, conversation: "Conversation", question: str, printer: "_Printer", at_terminal: bool) -> None:
    printer.begin(name)
    with interrupts_told() as stopped:
        turn = conversation.ask(question, printer.show, stopped)
    printer.end(name, turn)
    if turn.ended == "stopped" and not at_terminal:
        raise Interrupted


def _questions(opened: dict[str, "Conversation"], at_terminal: bool) -> Iterator[str]:
    """What the user types, or the lines of standard input; commands are obeyed here."""
    for line in _typed() if at_terminal else _piped():
        if line == "/exit":
            return
        if line == "/new":
            for conversation in opened.values():
                conversation.forget()
            _note("a new conversation")
        elif line.startswith("/") and " " not in line:
            _note(f"{line}: no such command. {_HELP}")
        elif line:
            yield line


def _typed() -> Iterator[str]:
    let_lines_be_edited()
    lines: list[str] = []
    while True:
        try:
            lines.append(input("... " if lines else "\n> "))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            lines.clear()
            _note(f"\n{_HELP}")
            continue
        if lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            continue
        yield "\n".join(lines).strip()
        lines.clear()


def _piped() -> Iterator[str]:
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    for line in sys.stdin:
        yield line.strip()


class _Printer:
    """Shows turns as they come: the think block dimmed on a terminal, labelled elsewhere; or each as JSON."""

    def __init__(self, console: Console, as_json: bool, with_names: bool) -> None:
        self.console, self.as_json, self.with_names = console, as_json, with_names
        self.plain = not console.is_terminal or console.is_dumb_terminal
        self._part: Part | None = None
        self._line_begun = False

    def echo(self, question: str) -> None:
        """A question that was not typed."""
        if not self.as_json:
            self._line(f"> {question}")

    def begin(self, name: str) -> None:
        """The answer of a model begins."""
        self._part = None
        if self.with_names and not self.as_json:
            self._line(f"== {name}")

    def show(self, part: "Part", text: str) -> None:
        """Some text of the answer."""
        if self.as_json:
            return
        if part != self._part:
            self._part = part
            self._end_line()
            if self.plain:
                self._line(f"[{part}]")
        self.console.print(text, end="", markup=False, style="dim" if part == "think" and not self.plain else None)
        self._line_begun = not text.endswith("\n")

    def end(self, name: str, turn: "Turn") -> None:
        """The answer is over."""
        if self.as_json:
            told = {"model": name, **asdict(turn), "tokens_per_second": round(turn.tokens_per_second, 1)}
            print(json.dumps(told, ensure_ascii=False), flush=True)
            return
        self._end_line()
        facts = f"think {turn.think_tokens} + answer {turn.answer_tokens} tokens, {turn.tokens_per_second:.1f} a second"
        if turn.ended in _ENDED:
            facts += f"; {_ENDED[turn.ended]}"
        if not turn.kept:
            facts += "; without an answer, this turn is forgotten"
        self._line(f"[{facts}]", dim=True)

    def _line(self, text: str, dim: bool = False) -> None:
        self.console.print(text, markup=False, style="dim" if dim and not self.plain else None)

    def _end_line(self) -> None:
        if self._line_begun:
            self.console.print()
            self._line_begun = False


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
