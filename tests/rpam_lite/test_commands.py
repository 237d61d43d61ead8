"""The commands to use a merge with other programs: what they must hold, and transformers' code as it runs."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.using import closing_commands, use_of, use_on_hub, write_use
from rpam_lite.recipe import load_recipe
from rpam_lite.report.commands import Use, as_markdown, commands
from tests.conftest import ROOT

USE = Use(
    name="mine",
    checkpoint="runs/my merge/merge/mine",
    gguf="runs/my merge/quantize/mine-q4_k_m.gguf",
    modelfile="runs/my merge/quantize/Modelfile.mine-q4_k_m",
    gguf_name="mine-q4_k_m.gguf",
    context=16384,
    max_tokens=4096,
    temperature=0.6,
    top_p=0.95,
    top_k=20,
)


def typed(use: Use) -> dict[str, list[list[str]]]:
    """Every command as a shell would take it apart."""
    told = {c.program: c for c in commands(use)}
    return {name: [shlex.split(line) for line in c.code.splitlines()] for name, c in told.items() if c.language == "sh"}


def value(line: list[str], flag: str) -> str:
    return line[line.index(flag) + 1]


def test_places_and_sampling_are_those_of_the_run() -> None:
    told = typed(USE)
    for line in told["llama.cpp"]:
        assert value(line, "-m") == USE.gguf
        assert "--jinja" in line
        assert value(line, "-c") == "16384"
        assert [value(line, flag) for flag in ("--temp", "--top-p", "--top-k", "--min-p")] == ["0.6", "0.95", "20", "0"]
    assert [line[0] for line in told["llama.cpp"]] == ["llama-cli", "llama-server"]
    assert told["Ollama"] == [["ollama", "create", "mine", "-f", USE.modelfile], ["ollama", "run", "mine"]]
    (served,) = told["vLLM"]
    assert served[:3] == ["vllm", "serve", USE.checkpoint]
    assert value(served, "--max-model-len") == "16384"
    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert json.loads(value(served, "--override-generation-config")) == sampling


def test_a_parser_that_would_take_plain_answers_for_thought_is_left_out() -> None:
    assert "--reasoning-parser" not in typed(USE)["vLLM"][0]
    opened = replace(USE, opens_think=True)
    assert value(typed(opened)["vLLM"][0], "--reasoning-parser") == "deepseek_r1"
    # The parser looks for both marks among the tokens, and does not start without them.
    assert "--reasoning-parser" not in typed(replace(opened, think_tokens=False))["vLLM"][0]


def test_every_setting_shows_where_it_is_read() -> None:
    use = replace(USE, system='Say "hm" first', temperature=0.0, top_k=0, names_think=False, modelfile="")
    told = {c.program: c for c in commands(use)}
    assert "Ollama" not in told
    assert value(typed(use)["llama.cpp"][0], "-sys") == 'Say "hm" first'
    assert "-sys" not in typed(use)["llama.cpp"][1]
    assert "do_sample=False" in told["transformers"].code
    assert r'{"role": "system", "content": "Say \"hm\" first"}' in told["transformers"].code
    assert json.loads(value(typed(use)["vLLM"][0], "--override-generation-config"))["top_k"] == -1
    assert "names no think block" in told["llama.cpp"].note
    assert "no `think`" in {c.program: c for c in commands(replace(USE, names_think=False))}["Ollama"].note


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose merge is the tiny Long parent."""
    recipe = load_recipe(Path("tiny"))
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "tiny").symlink_to(ROOT / "recipes/tiny/long")
    return Run(recipe, tmp_path, None, print)  # type: ignore[arg-type]


def test_the_code_for_transformers_runs(run: Run) -> None:
    (code,) = (c.code for c in commands(replace(use_of(run), temperature=0.0)) if c.program == "transformers")
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(code, "use.md", "exec"), {})
    assert out.getvalue().rstrip().endswith("\\boxed{7}")
    assert "<think>" in out.getvalue()
    (sampled,) = (c.code for c in commands(replace(use_of(run), max_tokens=4)) if c.program == "transformers")
    with redirect_stdout(out):
        exec(compile(sampled, "use.md", "exec"), {})


def test_facts_are_read_from_the_merge(run: Run) -> None:
    use = use_of(run)
    # The recipe's context is 16384, the model was made for less.
    assert (use.context, use.max_tokens, use.temperature) == (1024, 320, 0.6)
    assert (use.names_think, use.opens_think, use.think_tokens) == (False, False, True)
    assert use.gguf == str(run.folder / "quantize/tiny-q4_k_m.gguf")
    (run.folder / "report").mkdir()
    write_use(run)
    page = (run.folder / "report/use.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.M) == ["llama.cpp", "Ollama", "transformers", "vLLM"]
    assert f"rpam chat {run.folder}" in page
    lines = closing_commands(run).splitlines()
    assert len(lines) == 5
    assert lines[2] == f"Ollama:       ollama create tiny -f {use.modelfile} && ollama run tiny"


def test_on_the_hub_places_are_repositories(run: Run) -> None:
    use = use_on_hub(run, "ada/tiny", "ada/tiny-GGUF")
    told = typed(use)
    assert value(told["llama.cpp"][0], "-hf") == "ada/tiny-GGUF:Q4_K_M"
    assert told["Ollama"][0] == (
        ["hf", "download", "ada/tiny-GGUF", "tiny-q4_k_m.gguf", "Modelfile.tiny-q4_k_m", "--local-dir", "."]
    )
    assert told["Ollama"][1] == ["ollama", "create", "tiny", "-f", "Modelfile.tiny-q4_k_m"]
    assert told["vLLM"][0][2] == "ada/tiny"
    assert 'from_pretrained("ada/tiny")' in as_markdown(use)
    assert str(run.folder) not in as_markdown(use)
