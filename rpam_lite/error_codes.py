"""The short code of an error, printed before its sentence: `rpam: [E07] ...`.

Each code has a section in docs/troubleshooting.md. A message says what is wrong in this case; its code, what kind
of thing that is. The kind follows from the room of the house that raised the error, so that a `raise` need not name
it; the few that can come from any room (memory, disk) do: `RpamError(..., code="E08")`.
"""

from __future__ import annotations

import traceback

from rpam_lite.errors import RpamError

# What each code stands for. A code is never given a second meaning.
CODES = {
    "E01": "recipe",
    "E02": "command line",
    "E03": "the pair does not fit, or `rpam check` found errors",
    "E04": "checkpoint or adapter missing or damaged",
    "E05": "model hub and data sets",
    "E06": "architecture or tokenizer not supported",
    "E07": "memory",
    "E08": "disk, paths and permissions",
    "E09": "GPU",
    "E10": "questions, tasks and graders",
    "E11": "labels and calibration set",
    "E12": "fit",
    "E13": "run folder and stages",
    "E14": "merge and its proof",
    "E15": "GGUF, importance matrix and quantization",
    "E16": "running a model",
    "E17": "servers",
    "E18": "evaluation and comparison",
    "E19": "package not installed",
    "E20": "unexpected: a mistake of ours",
}

# A helper's errors are of the kind of whoever called it.
CALLER = ""
# Which code the errors of a module have; the longest prefix counts.
_CODE_OF_MODULE = {
    "rpam_lite.recipe": "E01",
    "rpam_lite.cli": "E02",
    "rpam_lite.pipeline": "E13",
    "rpam_lite.pipeline.checking": "E03",
    "rpam_lite.pipeline.parents": "E03",
    "rpam_lite.pipeline.questions": "E05",
    "rpam_lite.pipeline.planning": "E02",
    "rpam_lite.pipeline.chatting": "E02",
    "rpam_lite.pipeline.labelling": "E11",
    "rpam_lite.pipeline.dial": "E11",
    "rpam_lite.pipeline.fitting": "E12",
    "rpam_lite.pipeline.deciding": "E12",
    "rpam_lite.pipeline.merging": "E14",
    "rpam_lite.pipeline.proving": "E15",
    "rpam_lite.pipeline.eval_models": "E18",
    "rpam_lite.pipeline.comparing": "E18",
    "rpam_lite.pipeline.init": "E02",
    "rpam_lite.pipeline.recipes": "E01",
    "rpam_lite.preflight": "E03",
    "rpam_lite.patterns": "E11",
    "rpam_lite.fit": "E12",
    "rpam_lite.merge": "E14",
    "rpam_lite.report": "E13",
    "rpam_lite.streaming": "E06",
    "rpam_lite.streaming.capture": "E11",
    "rpam_lite.streaming.choice": "E07",
    "rpam_lite.streaming.shapes": "E02",
    "rpam_lite.streaming.store": "E08",
    "rpam_lite.checkpoint": "E04",
    "rpam_lite.checkpoint.files": CALLER,
    "rpam_lite.checkpoint.hub": "E05",
    "rpam_lite.checkpoint.publish": "E05",
    "rpam_lite.checkpoint.stream": "E14",
    "rpam_lite.device": "E09",
    "rpam_lite.errors": "E19",
    "rpam_lite.schemas": "E02",
    "export": "E15",
    "export.ollama": "E17",
    "export.gguf.architecture": "E06",
    "export.gguf.rope": "E06",
    "export.gguf.tokenizer": "E06",
    "quant": "E18",
    "quant.tasks": "E10",
    "quant.tasks.benchmarks": "E05",
    "quant.tasks.catalog": "E05",
    "quant.engines": "E16",
    "quant.engines.http": "E17",
    "quant.engines.http_answer": "E17",
    "quant.engines.http_client": "E17",
    "quant.models": "E16",
    "quant.conversation": "E16",
    "quant.logits": "E16",
    "quant.choose": "E07",
    "quant.memory": "E07",
    "quant.gguf": "E15",
    "quant.header": "E15",
    "quant.imatrix": "E15",
    "quant.proof": "E15",
    "bench": "E02",
}


UNEXPECTED = "E20"


def code_of(error: RpamError) -> str:
    """Its own code, or that of the innermost module that has one, of those that its traceback went through."""
    if error.code is not None:
        return error.code
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((code for module in reversed(modules) if (code := code_of_module(module))), UNEXPECTED)


def code_of_module(module: str) -> str | None:
    """The code of the errors that a module raises; CALLER for a helper, None for a module that is not ours."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((_CODE_OF_MODULE[prefix] for prefix in prefixes if prefix in _CODE_OF_MODULE), None)
