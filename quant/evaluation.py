"""What an evaluation found: models on the same questions, compared, saved and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.engines import Sampling
from quant.records import RECORD_VERSION, Record, regraded
from quant.tasks.catalog import Task
from quant.tasks.questions import Question
from rpam_lite.checkpoint.files import read_json, write_json
from rpam_lite.errors import RpamError

if TYPE_CHECKING:
    import pandas

    from quant.comparison import Comparison

EVALUATION_VERSION = 1
# Reasoning models repeat themselves without end when decoded greedily: the sampling of their model cards.
REASONING = Sampling(temperature=0.6, top_p=0.95, top_k=20)


@dataclass(frozen=True)
class Settings:
    """How models were asked.

    Attributes:
        samples: Answers a question.
        sampling: How tokens were drawn; its seed is hashed with each sample's key.
        max_tokens: Generated tokens after which an answer counts as truncated.
        long_think_tokens: An answer with this many think tokens is a long one.
    """

    samples: int = 1
    sampling: Sampling = REASONING
    max_tokens: int = 4096
    long_think_tokens: int = 32


@dataclass(frozen=True)
class ModelRun:
    """One model's answers.

    Attributes:
        name: Of the model.
        identity: Of its engine.
        records: By task, in the order of the questions, the samples of one together.
        speed: Generated tokens per second of wall time by task, of what was generated in this run; without the
            tasks whose records were all there.
    """

    name: str
    identity: str
    records: Mapping[str, Sequence[Record]]
    speed: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Asked:
    """Which questions of a task were asked, and how answers were graded.

    Attributes:
        source: Where the questions come from.
        digest: Hash of all of them.
        limit: The first so many were asked; all if None.
        grader: How answers were graded, as in `quant.tasks.task.Task`.
        pattern: Of the grader "regex", as there.
        fallback: Whether a last number counts where nothing is marked as the answer, as there.
    """

    source: str
    digest: str
    limit: int | None
    grader: str
    pattern: str
    fallback: bool


@dataclass(frozen=True)
class Evaluation:
    """Models on the same questions.

    Attributes:
        runs: One a model.
        tasks: What was asked, by the task's name.
        settings: How they were asked.
    """

    runs: tuple[ModelRun, ...]
    tasks: Mapping[str, Asked]
    settings: Settings

    def table(self) -> None:
        """Print accuracy and tokens of every model on every task, with 95 % intervals, and pairs of models."""
        from quant.tables import comparison_table, console, results_table

        console().print(results_table(self))
        if len(self.runs) > 1:
            console().print(comparison_table(self.compare()))

    def to_frame(self) -> pandas.DataFrame:
        """One row a completion: model, task, and the fields of `quant.records.Record`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas

        rows = [
            {"model": run.name, "task": task, **asdict(record)}
            for run in self.runs
            for task, records in run.records.items()
            for record in records
        ]
        return pandas.DataFrame(rows)

    def compare(self, other: Evaluation | None = None, curve: Sequence[str] = ()) -> Comparison:
        """Pairs of models, and their places against plain interpolation.

        Args:
            other: Each of its models is compared with each of this one; if None, all within this one are.
            curve: Names of interpolations in order of lambda, the Short and the Long parent as its ends: all
                models that are not among them are compared with this curve at equal tokens.

        Raises:
            RpamError: They were not asked the same questions in the same way, or there is no model of such a name.
        """
        from quant.comparison import compare_runs, compare_to_curve

        runs = self.runs
        pairs = [(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]
        if other is not None:
            _require_asked_alike(self, other)
            runs = (*self.runs, *other.runs)
            pairs = [(a, b) for a in self.runs for b in other.runs]
        found = compare_runs(runs, pairs, self.settings)
        if not curve:
            return found
        between = [run_named(runs, name) for name in curve]
        above = {run.name: compare_to_curve(run, between, self.settings) for run in runs if run.name not in curve}
        return replace(found, above=above)

    def save(self, path: str | Path) -> None:
        """Write everything, records too, as one JSON file that `read_evaluation` reads."""
        runs = [
            {
                "name": run.name,
                "identity": run.identity,
                "speed": dict(run.speed),
                "records": {t: [asdict(r) for r in records] for t, records in run.records.items()},
            }
            for run in self.runs
        ]
        tasks = {name: asdict(asked) for name, asked in self.tasks.items()}
        told = {"version": EVALUATION_VERSION, "settings": asdict(self.settings), "tasks": tasks}
        write_json(Path(path), {**told, "runs": runs})


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what `Evaluation.save` wrote.

    Raises:
        RpamError: The file is missing, or of another version.
    """
    told = read_json(Path(path), "the evaluation")
    if told.get("version") != EVALUATION_VERSION:
        raise RpamError(f"{path}: is no evaluation of version {EVALUATION_VERSION}; evaluate again.")
    try:
        runs = (
            ModelRun(
                r["name"],
                r["identity"],
                {t: [_record(row) for row in rows] for t, rows in r["records"].items()},
                r["speed"],
            )
            for r in told["runs"]
        )
        settings = Settings(**{**told["settings"], "sampling": Sampling(**told["settings"]["sampling"])})
        return Evaluation(tuple(runs), {name: Asked(**asked) for name, asked in told["tasks"].items()}, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RpamError(f"{path}: is no whole evaluation ({error}); evaluate again.") from None


def _record(row: Mapping[str, Any]) -> Record:
    if row["version"] != RECORD_VERSION:
        raise ValueError(f"its records are of version {row['version']}, this release reads {RECORD_VERSION}")
    return Record(**row)


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of several, all asked alike.

    Raises:
        RpamError: They were not, or two models have one name.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_asked_alike(first, other)
    runs = tuple(run for evaluation in evaluations for run in evaluation.runs)
    require_own_names([run.name for run in runs])
    return replace(first, runs=runs)


def graded_again(evaluation: Evaluation) -> Evaluation:
    """The evaluation with every completion graded by its graders as they are now; nothing is generated."""

    def again(name: str, rows: Sequence[Record]) -> list[Record]:
        asked = evaluation.tasks[name]
        grading = Task(name, [], asked.grader, asked.pattern, asked.fallback).grading
        golds = [Question(row.question, "", row.answer, row.level, row.tolerance) for row in rows]
        return [regraded(row, gold, grading) for row, gold in zip(rows, golds, strict=True)]

    runs = tuple(
        replace(run, records={task: again(task, rows) for task, rows in run.records.items()}) for run in evaluation.runs
    )
    return replace(evaluation, runs=runs)


def run_named(runs: Sequence[ModelRun], name: str) -> ModelRun:
    """The run of a model.

    Raises:
        RpamError: There is none of that name.
    """
    for run in runs:
        if run.name == name:
            return run
    raise RpamError(f"{name}: no model of that name was measured; there are {', '.join(r.name for r in runs)}.")


def require_own_names(names: Sequence[str]) -> None:
    """Two models of one name could not be told apart.

    Raises:
        RpamError: There are such.
    """
    if doubled := [name for name in names if names.count(name) > 1]:
        raise RpamError(f"two models are named {doubled[0]!r}; rename one, so that tables can tell them apart.")


def _require_asked_alike(one: Evaluation, other: Evaluation) -> None:
    if (one.tasks, one.settings) != (other.tasks, other.settings):
        raise RpamError(
            f"can't compare: one was asked {_asked(one)}, the other {_asked(other)}; evaluate both in the same way."
        )


def _asked(evaluation: Evaluation) -> str:
    tasks = [f"{name} {asked.digest} (limit {asked.limit})" for name, asked in evaluation.tasks.items()]
    return f"{', '.join(tasks)} with {evaluation.settings}"
