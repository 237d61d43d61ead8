"""One real use of each extra, run by .ci/wheels in an environment that has the wheel with that extra and nothing else.

python .ci/smoke.py bare | gguf | eval | report | nf4 | all
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import rpam_lite

PAIR = Path(str(files("rpam_lite"))) / "recipes" / "tiny"


def rpam(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the installed `rpam`."""
    command = [str(Path(sys.executable).parent / "rpam"), *arguments]
    wide = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=wide, check=False)


def least_seconds(action: Callable[[], object]) -> float:
    """Processor time that the processes of an action take, the least of five: other work on the machine adds to it."""
    seconds = []
    for _ in range(5):
        before = os.times()
        action()
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    return min(seconds)


def make_gguf(file: str) -> None:
    """A GGUF file for the others, from the checkout's environment."""
    from export.gguf.write import write_gguf
    from rpam_lite.checkpoint.source import CheckpointSource

    folder = Path(__file__).resolve().parents[1] / "recipes" / "tiny" / "short"
    source = CheckpointSource(folder)
    write_gguf(source, source.config, folder, Path(file), "F16", "tiny")


def bare() -> None:
    """Starts at once, and names what is missing."""
    assert rpam("--help").returncode == 0
    for package in ("torch", "transformers", "llama_cpp", "matplotlib", "datasets"):
        assert importlib.util.find_spec(package) is None, package
    told = rpam("check", "tiny")
    assert told.returncode == 1
    assert "pip install 'rpam_lite[" in told.stderr, told.stderr
    for name, action in (
        ("import rpam_lite", lambda: subprocess.run([sys.executable, "-c", "import rpam_lite"], check=True)),
        ("rpam --help", lambda: rpam("--help")),
    ):
        print(f"{name}: {least_seconds(action):.2f} s of processor time (the aim: 0.5 where nothing else runs)")


def gguf() -> None:
    """Quantizes a GGUF file and answers with it."""
    from quant import Sampling, load
    from quant.engines import Request
    from quant.gguf import quantize

    quantize(Path("tiny-f16.gguf"), Path("tiny-q8_0.gguf"), "Q8_0")
    model = load("tiny-q8_0.gguf")
    question = json.loads((PAIR / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[0])["question"]
    request = Request("1", model.chat_prompt(question), 24, Sampling(temperature=0))
    completion = next(iter(model.generate([request])))
    assert completion.text.strip(), completion
    model.close()


def evaluation() -> None:
    """Grades answers, with math-verify, and reads a data set's file."""
    import pandas

    from quant.tasks.grader import grade

    assert grade(r"so it is \boxed{\frac{1}{2}}", "0.5").correct
    assert not grade(r"so it is \boxed{3}", "0.5").correct
    frame = pandas.DataFrame({"question": ["What is 1 + 1?"], "answer": ["2"]})
    frame.to_parquet("questions.parquet")
    assert pandas.read_parquet("questions.parquet")["answer"][0] == "2"


def report() -> None:
    """Draws the coefficients of a fit."""
    from rpam_lite.report.plots import plot_coefficients

    plot_coefficients({f"model.layers.{i}.mlp.down_proj.weight": i / 8 for i in range(8)}, Path("coefficients.png"))
    assert Path("coefficients.png").read_bytes().startswith(b"\x89PNG")


def nf4() -> None:
    """Holds a pair of tensors in four bits, and answers with a model in four bits."""
    import torch

    from quant import Sampling, load
    from quant.engines import Request
    from rpam_lite.streaming.codec import Pair, codec_error, encode

    short = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    long = short + 0.1 * torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    pair = Pair("nf4", (64, 128), encode("nf4", short, long))
    error, norm = codec_error(pair, short, long)
    assert 0 < error / norm < 2, (error, norm)
    model = load(str(PAIR / "short"), bits=4)
    request = Request("1", model.chat_prompt("What is 1 + 1?"), 8, Sampling(temperature=0))
    assert next(iter(model.generate([request]))).token_ids
    model.close()


def everything() -> None:
    """The pair that ships with the wheel is checked and planned."""
    told = rpam("check", "tiny", "--json")
    assert told.returncode in (0, 3), told.stdout + told.stderr
    assert "12 GB" in rpam("plan", "tiny").stdout


if __name__ == "__main__":
    uses = {"bare": bare, "gguf": gguf, "eval": evaluation, "report": report, "nf4": nf4, "all": everything}
    if sys.argv[1] == "make_gguf":
        make_gguf(sys.argv[2])
    else:
        assert Path(rpam_lite.__file__).is_relative_to(sys.prefix), f"this is not the wheel: {rpam_lite.__file__}"
        uses[sys.argv[1]]()
        print(f"{sys.argv[1]}: {uses[sys.argv[1]].__doc__}")
