"""Tasks by name: public benchmarks from the hub, and a user's own files.

    load_tasks(["gsm8k", "MATH-500", "gpqa@633f5ee", "my.csv", TaskFile(Path("my.jsonl"), answer="solution")])

`gsm8k:train` and `math:train` are there to calibrate on.

A benchmark is downloaded once, by `datasets`, into its own cache. A folder with copies, as JSON lines with
the columns of the hub (`gsm8k_test.jsonl`, `math500_test.jsonl`, `aime24_train.jsonl`, ...), is looked into
first if `data` or the environment variable RPAM_DATA names one; what it lacks comes from the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant.tasks.benchmarks import BENCHMARKS, Benchmark, benchmark_named, to_question
from quant.tasks.questions import TaskFile, read_rows, read_task_file
from quant.tasks.task import Task
from rpam_lite.checkpoint.hub import answers
from rpam_lite.errors import RpamError, one_line

__all__ = ["Task", "TaskFile", "load_tasks"]

DATA_VARIABLE = "RPAM_DATA"


def load_tasks(names: Sequence[str | Path | Task | TaskFile], data: Path | None = None) -> list[Task]:
    """Load tasks, in the order of their names.

    Args:
        names: Of benchmarks, with "@revision" behind them where one is to be fixed; paths of question files;
            files with their field names; or tasks, which are handed through.
        data: Folder of local copies; the environment variable RPAM_DATA if None.

    Raises:
        RpamError: An unknown name, a file that can't be read, a data set that can't be had, or two tasks of one name.
    """
    if data is None and os.environ.get(DATA_VARIABLE):
        data = Path(os.environ[DATA_VARIABLE])
        if not data.is_dir():
            raise RpamError(f"{DATA_VARIABLE}={data}: is no folder; name one with local copies, or unset it.")
    tasks = [_load(name, data) for name in names]
    for name in (task.name for task in tasks):
        if sum(task.name == name for task in tasks) > 1:
            raise RpamError(f"task {name}: is named twice; drop one, or rename its file.")
    return tasks


def _load(name: str | Path | Task | TaskFile, data: Path | None) -> Task:
    if isinstance(name, Task):
        return name
    if isinstance(name, TaskFile):
        return _from_file(name)
    if isinstance(name, str):
        known, _, revision = name.partition("@")
        benchmark = benchmark_named(known)
        if benchmark is not None:
            return _from_benchmark(benchmark, revision, data)
        if Path(name).suffix not in {".jsonl", ".csv"} and not Path(name).is_file():
            raise RpamError(
                f"task {name!r}: is neither a file of questions (.jsonl, .csv) nor one of {', '.join(BENCHMARKS)}; "
                "check its spelling."
            )
    return _from_file(TaskFile(Path(name)))


def _from_file(file: TaskFile) -> Task:
    questions = read_task_file(file)
    return Task(file.path.stem, questions, file.grader, file.pattern, source=str(file.path))


def _from_benchmark(benchmark: Benchmark, revision: str, data: Path | None) -> Task:
    copy = data / benchmark.file if data else None
    rows: Iterable[Mapping[str, Any]]
    # A copy tells no revision: who asks for one gets it from the hub.
    if copy is not None and copy.is_file() and not revision:
        rows, source = [row for _, row in read_rows(copy)], str(copy)
    else:
        rows, revision = _download(benchmark, revision)
        source = "/".join(filter(None, [f"{benchmark.hub}@{revision}", benchmark.config, benchmark.split]))
    made = [to_question(benchmark, row, number) for number, row in enumerate(rows, 1)]
    questions = [question for question in made if question is not None]
    if not questions:
        raise RpamError(f"{source}: holds no question; delete it, or name another revision.")
    return Task(benchmark.name, questions, benchmark.grader, source=source, licence=benchmark.licence)


def _download(benchmark: Benchmark, revision: str) -> tuple[Iterable[Mapping[str, Any]], str]:
    """Rows of a data set and its revision: the commit, where `datasets` tells it."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise RpamError(
            f"The package {error.name!r} is not installed and the task {benchmark.name} needs it; "
            "install it with: pip install 'rpam_lite[eval]'",
            code="E19",
        ) from None
    try:
        with _cache_alone_if_offline(benchmark.hub):
            rows = load_dataset(
                benchmark.hub, benchmark.config or None, split=benchmark.split, revision=revision or None
            )
    except Exception as error:  # of datasets, huggingface_hub and httpx, which have no base in common
        raise _explained(benchmark, revision, error) from error
    for url in getattr(getattr(rows, "info", None), "download_checksums", None) or ():
        commit = re.search(r"@([0-9a-f]{40})/", url)
        if commit:
            return rows, commit[1]
    return rows, revision or "main"


@contextmanager
def _cache_alone_if_offline(hub: str) -> Iterator[None]:
    """Where the hub can't be reached, `datasets` is told so: it would try again and again for half a minute."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not answers(hub)
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _explained(benchmark: Benchmark, revision: str, error: Exception) -> RpamError:
    hub, what = benchmark.hub, one_line(error)
    if "gated" in what:
        return RpamError(
            f"{hub}: is a gated data set; accept its licence on https://huggingface.co/datasets/{hub}, "
            "then log in with `hf auth login`."
        )
    if revision and "evision" in what:
        return RpamError(
            f"{hub}: has no revision {revision!r}; take a commit of https://huggingface.co/datasets/{hub}."
        )
    if isinstance(error, ConnectionError) or "cache" in what:
        return RpamError(
            f"{hub}: is not in the cache and the hub can't be reached ({what}); go online once, or put "
            f"{benchmark.file} into a folder and name that in {DATA_VARIABLE}."
        )
    return RpamError(
        f"{hub}: can't be loaded ({type(error).__name__}: {what}); if the data set has changed, name an older "
        f"revision, as in {benchmark.name}@REVISION."
    )
