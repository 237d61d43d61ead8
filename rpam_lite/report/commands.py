"""Exact commands to use a merge with other programs: llama.cpp, Ollama, transformers, vLLM.

`commands` is a pure function of what is known of the merge; the end of a run, report/use.md and the model card print
its result. What each program is told, and why, stands in docs/use.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

PLAIN_BLOCK = "the answer's text begins with the think block; what follows `</think>` is the answer"


@dataclass(frozen=True)
class Use:
    """What is known of a merge.

    Attributes:
        name: Of the recipe.
        checkpoint: Folder of the merged checkpoint; on the hub its repository.
        gguf: A quantized file; on the hub repository and type, as "user/name-GGUF:Q4_K_M".
        modelfile: Its Modelfile for Ollama, of the hub the file's name; empty without one.
        gguf_name: Name of the quantized file, without a folder.
        context: Tokens of prompt and answer together.
        max_tokens: Of an answer at most.
        temperature: 0 is greedy.
        top_p: 1 keeps every token.
        top_k: 0 keeps every token.
        system: System prompt; none where empty.
        names_think: Whether the chat template names <think> and </think>, by which programs find the think block.
        opens_think: Whether the prompt that it makes ends in an open think block.
        think_tokens: Whether <think> and </think> are tokens of the vocabulary.
        on_hub: Whether the places above are on the hub.
    """

    name: str
    checkpoint: str
    gguf: str
    modelfile: str
    gguf_name: str
    context: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    system: str = ""
    names_think: bool = True
    opens_think: bool = False
    think_tokens: bool = True
    on_hub: bool = False


@dataclass(frozen=True)
class Command:
    """How one program is called.

    Attributes:
        program: Its name.
        code: What to type, one command a line.
        language: Of `code`.
        note: What becomes of the think block there, and what else to know.
    """

    program: str
    code: str
    language: Literal["sh", "python"]
    note: str


def commands(use: Use) -> list[Command]:
    """How each of the four programs is called, llama.cpp first; without Ollama where there is no Modelfile."""
    return [_llama_cpp(use), *([_ollama(use)] if use.modelfile else []), _transformers(use), _vllm(use)]


def as_markdown(use: Use, level: int = 2, programs: Collection[str] = ()) -> str:
    """The commands with their notes, as sections of a Markdown page.

    Args:
        use: What is known of the merge.
        level: Of the sections' headings.
        programs: Only these; all without any.
    """
    told = [c for c in commands(use) if not programs or c.program in programs]
    return "\n".join(f"{'#' * level} {c.program}\n\n```{c.language}\n{c.code}\n```\n\n{c.note}\n" for c in told)


def _llama_cpp(use: Use) -> Command:
    model = ["-hf" if use.on_hub else "-m", use.gguf]
    # llama.cpp's own default is a min-p of 0.05, which the merge was not measured with.
    sampling = ["--temp", f"{use.temperature:g}", "--top-p", f"{use.top_p:g}", "--top-k", str(use.top_k)]
    shared = [*model, "--jinja", "-c", str(use.context), *sampling, "--min-p", "0"]
    chat = ["llama-cli", *shared, *(["-sys", use.system] if use.system else [])]
    server = ["llama-server", *shared, "--reasoning-format", "deepseek"]
    note = (
        "`--jinja` renders the file's own chat template. The server puts the think block into `reasoning_content`."
        if use.names_think or use.opens_think
        else f"`--jinja` renders the file's own chat template, which names no think block: {PLAIN_BLOCK}."
    )
    if use.system:
        note += " Send the server the system prompt with every request."
    return Command("llama.cpp", f"{shlex.join(chat)}\n{shlex.join(server)}", "sh", note)


def _ollama(use: Use) -> Command:
    lines = [["ollama", "create", use.name, "-f", use.modelfile], ["ollama", "run", use.name]]
    if use.on_hub:
        repository = use.gguf.rpartition(":")[0]
        lines.insert(0, ["hf", "download", repository, use.gguf_name, use.modelfile, "--local-dir", "."])
    note = "Ollama 0.30 or newer. The Modelfile has context, sampling and stop tokens, the GGUF file the template."
    if not use.names_think:
        note += f" It does not name both think tags, so Ollama has no `think` for it: {PLAIN_BLOCK}."
    return Command("Ollama", "\n".join(map(shlex.join, lines)), "sh", note)


def _transformers(use: Use) -> Command:
    sampling = (
        f"do_sample=True, temperature={use.temperature:g}, top_p={use.top_p:g}, top_k={use.top_k}"
        if use.temperature
        else "do_sample=False"
    )
    system = f'{{"role": "system", "content": {json.dumps(use.system, ensure_ascii=False)}}}, ' if use.system else ""
    place = json.dumps(use.checkpoint, ensure_ascii=False)
    code = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place}, dtype="auto")
messages = [{system}{{"role": "user", "content": "What is 3 + 4?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens={use.max_tokens}, {sampling})
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))"""
    note = 'transformers 5 or newer; `.to("cuda")` on model and prompt for a GPU. '
    return Command("transformers", code, "python", note + _plain(use))


def _vllm(use: Use) -> Command:
    sampling = {"temperature": use.temperature, "top_p": use.top_p, "top_k": use.top_k or -1}
    line = ["vllm", "serve", use.checkpoint, "--max-model-len", str(use.context)]
    line += ["--override-generation-config", json.dumps(sampling)]
    if use.opens_think and use.think_tokens:
        line += ["--reasoning-parser", "deepseek_r1"]
        note = "The parser puts the think block into `reasoning` (`reasoning_content` in older versions)."
    else:
        note = (
            "No `--reasoning-parser`: vLLM's parsers take an answer without a `</think>` for reasoning that was cut "
            f"off, and this merge answers some questions without thinking. {_plain(use)}"
        )
    return Command("vLLM", shlex.join(line), "sh", note)


def _plain(use: Use) -> str:
    opened = "The prompt opens the think block. " if use.opens_think else ""
    return f"{opened}{PLAIN_BLOCK[0].upper()}{PLAIN_BLOCK[1:]}."
