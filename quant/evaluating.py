"""Ask models the questions of tasks, grade, and keep every completion.

from quant import evaluate, load
result = evaluate(load("merged-q4_k_m.gguf", context=8192), tasks=["gsm8k"], samples=4, limit=200)
result.table()
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from quant.asking import answer_questions
from quant.engines import Engine, Sampling
from quant.evaluation import REASONING, Asked, Evaluation, ModelRun, Settings, require_own_names
from quant.records import RECORD_VERSION, Record
from quant.tasks.catalog import Task, load_tasks
from rpam_lite.errors import RpamError

OnRecord = Callable[[str, str], None]  # told the model and the task of each new completion


def evaluate(
    models: Engine | Sequence[Engine],
    tasks: Sequence[str | Path | Task],
    *,
    samples: int = 1,
    limit: int | None = None,
    sampling: Sampling = REASONING,
    max_tokens: int = 4096,
    long_think_tokens: int = 32,
    records: str | Path = "records",
    filed_as: str = "",
    on_record: OnRecord = lambda model, task: None,
) -> Evaluation:
    """Ask models the questions of tasks, grade, and keep every completion.

    Interrupted, it goes on where it was; what was generated for the same model, task and sampling is not
    generated again, so that `samples` and `limit` can grow.

    Args:
        models: One engine or several; see `quant.load`.
        tasks: Names of the catalogue, files of questions, or tasks.
        samples: Answers a question.
        limit: The first so many questions of each task; all if None.
        sampling: How tokens are drawn. Greedy decoding makes reasoning models repeat themselves.
        max_tokens: Generated tokens after which an answer counts as truncated.
        long_think_tokens: An answer with this many think tokens is a long one.
        records: Folder of the records, one file a model, task and way of sampling.
        filed_as: With one model: file its records under this name instead of the engine's identity, to go on with
            another engine that runs the same model.
        on_record: Called with model and task after each new completion.

    Raises:
        RpamError: A task can't be loaded, an engine fails, two models have one name; what has ended is kept.
    """
    engines = list(models) if isinstance(models, Sequence) else [models]
    if isinstance(tasks, str | Path) or not tasks or not engines:
        raise RpamError(f"models and tasks: give at least one of each, as lists; tasks are {tasks!r}.")
    for name, number in (("samples", samples), ("max_tokens", max_tokens), ("limit", 1 if limit is None else limit)):
        if number < 1:
            raise RpamError(f"{name}={number}: must be at least 1.")
    if Path(filed_as).name != filed_as:
        raise RpamError(f"filed_as={filed_as!r}: must be a plain name, without folders.")
    if filed_as and len(engines) > 1:
        raise RpamError(f"filed_as={filed_as!r} goes with one model, not with {len(engines)}.")
    require_own_names([engine.name for engine in engines])
    settings = Settings(samples, sampling, max_tokens, long_think_tokens)
    loaded = load_tasks(tasks)
    runs = []
    for engine in engines:
        folder = Path(records) / (filed_as or f"{engine.name}-{engine.identity}".replace("/", "-"))
        runs.append(_run(engine, loaded, settings, limit, folder, on_record))
    asked = {t.name: Asked(t.source, t.digest, limit, t.grader, t.pattern, t.fallback) for t in loaded}
    return Evaluation(tuple(runs), asked, settings)


def _run(
    engine: Engine, tasks: Sequence[Task], settings: Settings, limit: int | None, folder: Path, on_record: OnRecord
) -> ModelRun:
    """One model's answers to all tasks."""
    found, speed = {}, {}
    for task in tasks:
        found[task.name], seconds, generated = _answered(engine, task, settings, limit, folder, on_record)
        if generated:
            speed[task.name] = generated / seconds
    return ModelRun(engine.name, engine.identity, found, speed)


def _answered(
    engine: Engine, task: Task, settings: Settings, limit: int | None, folder: Path, on_record: OnRecord
) -> tuple[list[Record], float, int]:
    """Records of a task, the seconds that it took now, and the tokens that were generated now."""
    began, generated = time.monotonic(), 0

    def count(record: Record) -> None:
        nonlocal generated
        generated += record.tokens
        on_record(engine.name, task.name)

    records = answer_questions(
        engine,
        task.questions[:limit],
        folder / _file_name(task, settings),
        settings.max_tokens,
        settings.samples,
        settings.sampling,
        grading=task.grading,
        on_record=count,
    )
    return records, time.monotonic() - began, generated


def _file_name(task: Task, settings: Settings) -> str:
    """One file for a task and a way of sampling; samples and questions may grow in number."""
    asked = json.dumps([task.name, asdict(settings.sampling), settings.max_tokens, RECORD_VERSION])
    return f"{task.name}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.jsonl"
