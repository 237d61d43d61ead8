"""The kinds of values that a recipe holds: shares, counts, sizes of memory, questions by file or by data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from rpam_lite.errors import RpamError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
ParentName = Literal["long", "short"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]

# A data set by its name to the number of questions drawn of it; None takes all.
QuestionSets = dict[str, int | None]


def _questions(value: object) -> object:
    """A file; or sets as `gsm8k:train` or {gsm8k:train: 300, math:train: all}, by the names of the catalogue."""
    from quant.tasks.benchmarks import BENCHMARKS, benchmark_named

    if isinstance(value, str):
        if Path(value).suffix or benchmark_named(value.partition("@")[0]) is None:
            return value
        value = {value: None}
    if not isinstance(value, dict) or not value:
        return value
    sets: dict[str, object] = {}
    for name, size in value.items():
        benchmark = benchmark_named(str(name).partition("@")[0])
        if benchmark is None:
            raise ValueError(f"there is no data set {name!r}; known are {', '.join(BENCHMARKS)}")
        if size in ("all", None):
            size = None
        elif not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} takes a number of questions, or `all`")
        sets[f"{benchmark.name}{''.join(str(name).partition('@')[1:])}"] = size
    return sets


Questions = Annotated[Path | QuestionSets, BeforeValidator(_questions)]


def graders_of(questions: Path | QuestionSets) -> dict[str, str]:
    """The grader of each data set among them."""
    from quant.tasks.benchmarks import BENCHMARKS

    names = questions if isinstance(questions, dict) else {}
    return {name: BENCHMARKS[name.partition("@")[0]].grader for name in names}


def file_of(questions: Path | QuestionSets) -> Path:
    if isinstance(questions, Path):
        return questions
    raise RpamError(f"Nothing has been drawn of {', '.join(questions)} yet; the `rpam` commands do that.")


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _bytes(value: object) -> object:
    """`6GiB`, `500 MB` or a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", value)
    if match is None:
        raise ValueError("must be a size such as 6GiB, 500MB or a number of bytes")
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** " KMGT".index(unit[:1] or " "))


Size = Annotated[
    int, BeforeValidator(_bytes), Field(gt=0), WithJsonSchema({"type": ["integer", "string"], "examples": ["6GiB"]})
]


def parse_size(text: str, where: str) -> int:
    """Bytes of a size such as 6GiB; `where` it was given is named in the error.

    Raises:
        RpamError: It is none.
    """
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError:
        raise RpamError(f"{where} {text}: must be a size such as 6GiB, 500MB or a number of bytes.") from None
