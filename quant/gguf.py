"""Quantization of a GGUF file, every type that llama.cpp has, by its own name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import llama_cpp
from gguf import GGMLQuantizationType

from quant.imatrix import check_complete, read_imatrix
from rpam_lite.checkpoint.files import whole_file
from rpam_lite.errors import RpamError

_PREFIX = "LLAMA_FTYPE_MOSTLY_"
# Types that are garbage without an importance matrix, and llama.cpp refuses.
NEED_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"})


@dataclass(frozen=True)
class Settings:
    """How to quantize, beside the type.

    Attributes:
        threads: CPU threads.
        imatrix: Importance matrix, an imatrix GGUF.
        dataset: What it was calibrated on; the file says so.
        overrides: Type of the tensors whose name holds a regular expression, by that expression.
        output_type: Type of the output head; llama.cpp's own choice where empty.
        embedding_type: Type of the embedding; likewise.
    """

    threads: int = 2
    imatrix: Path | None = None
    dataset: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    output_type: str = ""
    embedding_type: str = ""


@dataclass(frozen=True)
class Size:
    """Size of a file's weights: MiB, and bits a weight."""

    mib: float
    bits: float


def quantization_types() -> dict[str, int]:
    """Every type the installed llama.cpp offers, by its own name, with its number."""
    return {
        name.removeprefix(_PREFIX): int(getattr(llama_cpp, name)) for name in dir(llama_cpp) if name.startswith(_PREFIX)
    }


def quantize(
    source: Path,
    target: Path,
    type_name: str,
    settings: Settings = Settings(),
    on_tensor: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Quantize a GGUF file; `target` is whole or absent.

    Args:
        source: F32, F16 or BF16 GGUF file.
        target: Final name.
        type_name: llama.cpp's name of the type, such as "Q4_K_M".
        settings: All else.
        on_tensor: Called with the name of each tensor.

    Returns:
        What llama.cpp did otherwise than asked: tensors whose rows don't divide into the type's blocks.

    Raises:
        RpamError: A type is unknown, the importance matrix is incomplete or is missing where one is
            needed, or llama.cpp refused or died; its last words are quoted.
    """
    check_types([type_name], settings)
    if settings.imatrix is None and type_name in NEED_IMATRIX:
        raise RpamError(f"`quantize.types`: {type_name} needs an importance matrix; set `quantize: {{imatrix: true}}`.")
    if settings.imatrix is not None:
        check_complete(read_imatrix(settings.imatrix), source)
    fallbacks: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if "progress" in event:
            on_tensor(event["progress"])
        if "fallback" in event:
            fallbacks.append(event["fallback"])

    with whole_file(target) as part:
        _run([_job(source, part, type_name, settings)], source, hear)
    return fallbacks


def sizes(source: Path, types: Sequence[str], settings: Settings = Settings()) -> dict[str, Size]:
    """Size of every type, without writing anything.

    Raises:
        RpamError: As `quantize`, but for the importance matrix.
    """
    check_types(types, settings)
    found: dict[str, Size] = {}
    last: list[Size] = []

    def hear(event: dict[str, Any]) -> None:
        if "quant" in event:
            last.append(Size(*event["quant"]))
        if "done" in event:
            found[event["done"]] = last[-1]

    jobs = [_job(source, Path("unused"), name, settings) | {"dry_run": True, "imatrix": None} for name in types]
    _run(jobs, source, hear)
    return found


def check_types(types: Sequence[str], settings: Settings) -> None:
    """Whether llama.cpp knows all types.

    Raises:
        RpamError: It does not.
    """
    known = quantization_types()
    for name in types:
        if name not in known:
            raise RpamError(f"`quantize.types`: llama.cpp has no type {name!r}; it has {', '.join(sorted(known))}.")
    for name in filter(None, [*settings.overrides.values(), settings.output_type, settings.embedding_type]):
        if name.upper() not in GGMLQuantizationType.__members__:
            known_types = ", ".join(GGMLQuantizationType.__members__)
            raise RpamError(f"`quantize`: a tensor can't be of type {name!r}; it can be {known_types}.")


def _job(source: Path, target: Path, type_name: str, settings: Settings) -> dict[str, Any]:
    return {
        "name": type_name,
        "source": str(source),
        "target": str(target),
        "ftype": quantization_types()[type_name],
        "threads": settings.threads,
        "dry_run": False,
        "imatrix": str(settings.imatrix) if settings.imatrix else None,
        "dataset": settings.dataset,
        "overrides": dict(settings.overrides),
        "output_tensor_type": settings.output_type,
        "token_embedding_type": settings.embedding_type,
    }


def _run(jobs: list[dict[str, Any]], source: Path, hear: Callable[[dict[str, Any]], None]) -> None:
    """Run jobs in a child process; hand on what it tells."""
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        command = [sys.executable, "-m", "quant.worker"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                with child.stdin as stream:
                    stream.write(json.dumps(jobs))
                for line in child.stdout:
                    hear(json.loads(line))
            except BrokenPipeError:
                pass  # it died; its exit code says more
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            words = " ".join(errors.read().split()[-30:]) or "no message"
            names = ", ".join(job["name"] for job in jobs)
            raise RpamError(f"{source}: llama.cpp failed to quantize it to {names} (exit {child.returncode}; {words}).")
