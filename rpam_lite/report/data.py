"""What a run tells, gathered once: the page, the model cards, report.md and the closing table all render these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quant.statistics import Interval
from rpam_lite.report.commands import Use

SHORT, LONG = "Short", "Long"  # names of the parents' rows
# One row of evaluation.json, as the eval stage writes it.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Licence:
    """Under which licence something is passed on, by the hub's identifiers.

    Attributes:
        id: As "apache-2.0"; "unknown" where nothing tells.
        name: Of a licence that the hub has no identifier for.
        link: To its text.
        found: Where it was read.
    """

    id: str
    name: str = ""
    link: str = ""
    found: str = ""

    @property
    def title(self) -> str:
        """Its name where it has one of its own, else its identifier."""
        return self.name or self.id


@dataclass(frozen=True)
class Parent:
    """A checkpoint that the merge was made from.

    Attributes:
        role: "long", "short" or "base".
        name: Its id on the hub, or the name of its folder.
        sha256: Identity of its files.
        licence: As its own files tell.
    """

    role: str
    name: str
    sha256: str
    licence: Licence

    @property
    def is_on_hub(self) -> bool:
        """Whether the name is an id on the hub."""
        return "/" in self.name


@dataclass(frozen=True)
class Origin:
    """What a merge was made from: known before anything is measured.

    Attributes:
        name: Of the merge.
        version: Of rpam_lite.
        method: Merge method with its options, as it is told.
        is_fitted: Whether its coefficients were fitted.
        parents: Long, Short and, where the recipe names it, the base.
        donor: Whose config, tokenizer and template are kept.
        dtype: Of the weights.
        differences: Code and text of preflight's warnings.
    """

    name: str
    version: str
    method: str
    is_fitted: bool
    parents: Sequence[Parent]
    donor: str
    dtype: str
    differences: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Headline:
    """The figures at the top, of one file against the Long parent.

    Attributes:
        row: The file's row.
        kept: Its accuracy over Long's.
        saved: Share of Long's tokens that it does without.
        size: Bytes.
        whole_size: Bytes of the unquantized file.
    """

    row: Row
    kept: Interval
    saved: Interval
    size: int
    whole_size: int


@dataclass(frozen=True)
class File:
    """One GGUF file of the merge.

    Attributes:
        type: llama.cpp's name of it.
        name: Of the file.
        size: Bytes.
        row: Its row of the evaluation.
        divergence: From the unquantized file, as divergence.json has it; None of that file itself.
    """

    type: str
    name: str
    size: int
    row: Row
    divergence: Mapping[str, float] | None


@dataclass(frozen=True)
class Spread:
    """Lambda of one group: its value, or mean and spread over rows."""

    mean: float
    deviation: float = 0.0
    low: float = 0.0
    high: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Lambdas:
    """The fitted coefficients by place.

    Attributes:
        granularity: Which tensors share one.
        layers: Number of decoder layers.
        parts: By part of a layer (the empty name where a layer has one lambda) and layer.
        others: Of what stands outside the layers.
    """

    granularity: str
    layers: int
    parts: Mapping[str, Mapping[int, Spread]]
    others: Mapping[str, Spread]


@dataclass(frozen=True)
class FitLog:
    """How the fit went.

    Attributes:
        terms: Curve over the steps of each term that is not always 0, `loss`, their weighted sum, last; without
            `loss` where it is one term alone.
        layers: What the fit layer by layer logged, one row a layer.
        stopped: Why it stopped.
        warning: What is wrong with it, empty if nothing.
    """

    terms: Mapping[str, Sequence[float]]
    layers: Sequence[Mapping[str, float]]
    stopped: str
    warning: str


@dataclass(frozen=True)
class Answer:
    """What one model said: think block and answer apart."""

    model: str
    think: str
    text: str
    tokens: int
    think_tokens: int
    correct: bool
    reason: str
    block: str
    truncated: bool


@dataclass(frozen=True)
class Example:
    """One question with the answers of both parents and the merge.

    Attributes:
        title: What it is an example of.
        rule: How it was chosen.
        count: On how many questions this is so.
        question: As the models were asked.
        gold: The right answer.
        level: Its difficulty, 0 where none is given.
        answers: Of Short, Long and the merge.
    """

    title: str
    rule: str
    count: int
    question: str
    gold: str
    level: int
    answers: Sequence[Answer]


@dataclass(frozen=True)
class StageRun:
    """A finished stage and the seconds it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Digest:
    """A file that the run made, relative to the run folder, with its bytes and SHA-256."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """All of a run. What a recipe does not make is None or empty.

    Attributes:
        origin: What the merge was made from.
        rows: Of the evaluation.
        questions: How many were asked.
        long_think_tokens: From which an answer is a long one.
        max_tokens: An answer is cut off there.
        headline: Figures at the top.
        files: The merge's GGUF files, the unquantized one first.
        imatrix: Whether an importance matrix weighed the quantization.
        labels: Calibration questions by label: long, short, dropped.
        lambdas: The coefficients.
        fit: How the fit went.
        dial: fit/frontier.json, where a family was fitted.
        proofs: Sentences on what was verified.
        examples: Answers side by side.
        stages: What ran, in order.
        environment: Python, machine and packages that the evaluation ran with.
        digests: Of the files that are passed on.
        use: How other programs run the merge, with paths as from the run folder; None if not told.
        recipe: Its text, without this machine's paths.
    """

    origin: Origin
    rows: Sequence[Row]
    questions: int
    long_think_tokens: int
    max_tokens: int
    headline: Headline
    files: Sequence[File]
    imatrix: bool
    labels: Mapping[str, int]
    lambdas: Lambdas | None
    fit: FitLog | None
    dial: Mapping[str, Any] | None
    proofs: Sequence[str]
    examples: Sequence[Example]
    stages: Sequence[StageRun]
    environment: Mapping[str, str]
    digests: Sequence[Digest]
    recipe: str
    use: Use | None = None

    @property
    def long(self) -> Row:
        """The Long parent's row."""
        return next(row for row in self.rows if row["name"] == LONG)

    @property
    def short(self) -> Row:
        """The Short parent's row."""
        return next(row for row in self.rows if row["name"] == SHORT)

    @property
    def headline_file(self) -> File:
        """The file that the headline is about."""
        return next(file for file in self.files if file.row["name"] == self.headline.row["name"])

    @property
    def nearest_scalars(self) -> list[Row]:
        """The interpolation with nearly the tokens of the headline's file, which every claim has beside it; or none."""
        between = [row for row in self.rows if row["kind"] == "scalar"]
        return sorted(between, key=lambda row: abs(row["tokens"] - self.headline.row["tokens"]))[:1]

    @property
    def has_levels(self) -> bool:
        """Whether the questions carry more than one level of difficulty."""
        return len(self.rows[0]["levels"]) > 1
