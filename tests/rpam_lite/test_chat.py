"""`rpam chat`: questions from a pipe, from the command line, at a terminal; what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from export.gguf.write import write_gguf
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.cli import app
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.chatting import find_model
from tests.conftest import ROOT, make_checkpoint

GREEDY = ("--temperature", "0", "--threads", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Long parent, as if it were a merge in two types."""
    folder = tmp_path_factory.mktemp("files")
    source = CheckpointSource(ROOT / "recipes/tiny/long")
    for name in ("F16", "Q8_0"):
        file = folder / f"tiny-{name.lower()}.gguf"
        write_gguf(source, source.config, source.folder, file, name, "tiny")  # type: ignore[arg-type]
    (folder / "tiny.imatrix.gguf").write_bytes(b"")
    return folder


def chat(*arguments: str, typed: str = "") -> Any:
    return CliRunner().invoke(app, ["chat", *arguments, *GREEDY], input=typed, catch_exceptions=True)


def test_questions_from_a_pipe(files: Path) -> None:
    result = chat(
        str(files / "tiny-f16.gguf"), typed="What is 3 + 4?\n\n/new\n/huh\nWhat is 9 + 8?\n/exit\n1 + 1 = ?\n"
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("> ")] == ["> What is 3 + 4?", "> What is 9 + 8?"]
    assert lines.count("[think]") == lines.count("[answer]") == 2
    assert lines[lines.index("[answer]") + 1] == "\\boxed{7}"
    counts = re.findall(r"\[think (\d+) \+ answer (\d+) tokens, [\d.]+ a second\]", result.stdout)
    assert len(counts) == 2
    assert all(int(think) > 5 and int(answer) > 2 for think, answer in counts)
    assert "a new conversation" in result.stderr
    assert "/huh: no such command" in result.stderr


def test_one_question_as_json(files: Path) -> None:
    result = chat(str(files), "--type", "q8_0", "--once", "What is 3 + 4?", "--json")
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert told["model"] == "tiny-q8_0"
    assert told["answer"] == "\\boxed{7}"
    assert "3+4=7" in told["think"]
    assert (told["ended"], told["kept"]) == ("stop", True)


def test_what_cuts_an_answer_off_is_said(files: Path) -> None:
    file = str(files / "tiny-f16.gguf")
    result = chat(file, "--once", "What is 3 + 4?", "--max-tokens", "8")
    assert "cut off at --max-tokens; without an answer, this turn is forgotten" in result.stdout
    result = chat(file, "--once", "What is 3 + 4?", "--context", "40")
    assert "cut off: the context is full; /new begins anew, --context makes it larger" in result.stdout
    result = chat(file, "--once", "What is 3 + 4?" * 20, "--context", "40")
    assert isinstance(result.exception, RpamError)
    assert "the context of 40 tokens is full" in str(result.exception)


def test_a_checkpoint_is_exported_for_the_while(tmp_path: Path) -> None:
    result = chat(str(ROOT / "recipes/tiny/short"), "--once", "What is 3 + 4?")
    assert "[answer]\n\\boxed{7}\n[think 0 + answer" in result.stdout
    assert "exporting" in result.stderr
    assert not list((ROOT / "recipes/tiny/short").glob("*.gguf"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.gguf"], r"none\.gguf: no such GGUF file"),
        (["none"], "none: no such recipe file"),
        (["FILES/tiny-f16.gguf", "--type", "Q8_0"], "--type Q8_0: .*tiny-f16.gguf is one file; leave --type out"),
        (["FILES", "--type", "Q2_K"], "of GGUF files it has F16, Q8_0, not Q2_K; name one of them with --type"),
        (["FILES", "--compare", "--type", "F16"], "--compare: the parents' GGUF files are not there"),
        (["tiny", "--runs", "FILES"], "holds no GGUF file of the merge yet; `rpam run tiny --runs "),
    ],
)
def test_what_it_refuses(files: Path, arguments: list[str], expected: str) -> None:
    result = chat(*(a.replace("FILES", str(files)) for a in arguments), "--once", "?")
    assert isinstance(result.exception, RpamError)
    assert re.search(expected, str(result.exception))


def test_a_run_gives_its_settings_and_its_parents(files: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    for place, name in (
        ("quantize", "tiny-q8_0"),
        ("export", "tiny-f16"),
        ("label", "long-f16"),
        ("label", "short-f16"),
    ):
        (run / place).mkdir(parents=True, exist_ok=True)
        (run / place / f"{name}.gguf").symlink_to(files / "tiny-f16.gguf")
    found = find_model(Path("tiny"), tmp_path)
    assert list(found.models) == ["tiny-f16", "long", "short"]
    assert (found.settings.num_ctx, found.settings.temperature, found.threads) == (16384, 0.6, 1)
    assert next(iter(find_model(Path("tiny"), tmp_path, "Q8_0").models)) == "tiny-q8_0"
    changed = found.with_settings({"temperature": 0.0, "system": "Be brief", "top_p": None})
    assert (changed.settings.temperature, changed.settings.system, changed.settings.top_p) == (0, "Be brief", 0.95)
    result = chat("tiny", "--runs", str(tmp_path), "--compare", "--once", "What is 3 + 4?")
    assert re.findall(r"^== (.+)$", result.stdout, re.M) == ["tiny-f16", "long", "short"]
    assert result.stdout.count("\\boxed{7}") == 3


def test_at_a_terminal_an_answer_is_stopped_and_the_conversation_goes_on(tmp_path: Path, tokenizer: Any) -> None:
    make_checkpoint(tmp_path / "hf", 5, tokenizer)
    tensors = load_file(tmp_path / "hf/model.safetensors")
    for name in ("<|im_end|>", "<|endoftext|>"):
        # Never among the likeliest: a model that does not end by itself.
        tensors["model.embed_tokens.weight"][tokenizer.token_to_id(name)] = 0
    save_file(tensors, tmp_path / "hf/model.safetensors", {"format": "pt"})
    source = CheckpointSource(tmp_path / "hf")
    write_gguf(source, source.config, source.folder, tmp_path / "random.gguf", "F16", "random")
    main, other = pty.openpty()
    command = [sys.executable, "-m", "rpam_lite.cli", "chat", "random.gguf", "--context", "8192"]
    command += ["--temperature", "2", "--seed", "1", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and its children with it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    seen = ""

    def wait_for(pattern: str, since: int = 0, interrupting: bool = False) -> int:
        nonlocal seen
        end = time.monotonic() + 60
        while not re.search(pattern, seen[since:]):
            assert time.monotonic() < end, seen[-2000:]
            if select.select([main], [], [], 5)[0]:
                seen += os.read(main, 1 << 16).decode("utf-8", errors="replace")
            elif interrupting:
                process.send_signal(signal.SIGINT)
        return len(seen)

    place = wait_for("> ")
    assert "random was made for 512 tokens; beyond them its answers get worse" in seen
    for _ in range(2):
        os.write(main, b"What is 3 + 4?\n")
        place = wait_for("What is 3 \\+ 4\\?(?s:.){80}", place)
        process.send_signal(2)
        place = wait_for(r"\[think \d+ \+ answer \d+ tokens, [\d.]+ a second; stopped.*\s+> ", place)
    # input() waits for a key, with a signal that came just before: only the next one wakes it.
    process.send_signal(signal.SIGINT)
    wait_for(r"Ctrl-C stops an answer(?s:.)*\n> ", place - 3, interrupting=True)
    os.write(main, b"\x04")
    assert process.wait(30) == 0
    os.close(main)
    os.close(other)
    assert "Traceback" not in seen
    assert "\x1b[2m" in seen
