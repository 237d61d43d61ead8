"""The schema of a recipe: everything a user can set, with its default, in one place.

Unknown keys are refused, and all mistakes of a file are reported at once. Paths in a recipe are
relative to the recipe's own folder. Questions are a file, or data sets by name, of which the pipeline
draws (pipeline/questions.py). After a change here: `python -m rpam_lite.schemas docs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from rpam_lite.checkpoint.files import RUN_LOG, RUN_RECIPE, is_run_folder
from rpam_lite.checkpoint.hub import local_or_hub
from rpam_lite.errors import RpamError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
ParentName = Literal["long", "short"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
OURS = "rpam"  # the merge method that fits coefficients


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


def _graders(questions: Path | QuestionSets) -> dict[str, str]:
    """The grader of each data set among them."""
    from quant.tasks.benchmarks import BENCHMARKS

    names = questions if isinstance(questions, dict) else {}
    return {name: BENCHMARKS[name.partition("@")[0]].grader for name in names}


def _file_of(questions: Path | QuestionSets, key: str) -> Path:
    if isinstance(questions, Path):
        return questions
    raise RpamError(f"`{key}`: nothing has been drawn of {', '.join(questions)} yet; the `rpam` commands do that.")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Parents(_Section):
    """The two checkpoints to merge, and the one both were tuned from, if it is at hand.

    Each a folder (absolute once the recipe is loaded) or an id on the hub: org/name or org/name@revision.
    """

    long: Path
    short: Path
    base: Path | None = None


class Urls(_Section):
    """Servers of the two parents, with an OpenAI-compatible interface."""

    long: str = Field(pattern=r"^https?://")
    short: str = Field(pattern=r"^https?://")


class Label(_Section):
    """Pattern labels: sample both parents on `questions`, grade, and apply the rule."""

    questions: Questions
    rule: Literal["strict", "release", "ada-r1", "cost"] = Field(
        "strict", description="from both parents' samples to a label; another one samples nothing again"
    )
    price: NonNegative = Field(1.0, description="of `rule: cost`: points of accuracy that 1000 tokens must be worth")
    samples: Positive = Field(8, description="answers a question from each parent (k)")
    adaptive: bool = Field(False, description="stop sampling a question when its label is settled; k is the most")
    stop_probability: Share = Field(
        0.01, description="of `adaptive`: settled if all k would change the label with less than this; 0: if they can't"
    )
    temperature: NonNegative = 0.6
    top_p: Share = 0.95
    top_k: int = Field(20, ge=0, description="0 keeps every token")
    max_tokens: Positive = 4096
    parallel: Positive = Field(16, description="sequences decoded side by side")
    engine: Literal["gguf", "bf16", "int8", "nf4", "http"] = Field(
        "gguf", description="runs the parents: llama.cpp, transformers in one of three precisions, or servers"
    )
    type: Literal["F32", "F16", "BF16", "Q8_0"] | None = Field(
        None, description="of `engine: gguf`; without it that of `export.type`"
    )
    urls: Urls | None = Field(None, description="of `engine: http`: one server for each parent")

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Label:
        given = self.model_fields_set
        for key, needs, read in (
            ("price", "rule: cost", self.rule == "cost"),
            ("stop_probability", "adaptive: true", self.adaptive),
            ("type", "engine: gguf", self.engine == "gguf"),
            ("urls", "engine: http", self.engine == "http"),
        ):
            if key in given and not read:
                raise ValueError(f"`{key}` is read under `{needs}` alone; set that, or take `{key}` out")
        if self.engine == "http" and self.urls is None:
            raise ValueError("`engine: http` needs `urls: {long: http://..., short: http://...}`")
        if others := [name for name, grader in _graders(self.questions).items() if grader != "math"]:
            raise ValueError(f"{', '.join(others)}: only answers in a box can be labelled; take sets of mathematics")
        return self

    @property
    def file(self) -> Path:
        """The questions as a file, of data sets once they are drawn."""
        return _file_of(self.questions, "label.questions")


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


class Memory(_Section):
    """What capture and fit may use; without a value, most of what is free now."""

    device: Size | None = Field(None, description="of the GPU, such as 6GiB; not read on a CPU")
    host: Size | None = None
    disk: Size | None = None
    accelerator: Accelerator = Field("auto", description="where capture and fit compute; auto: a GPU if there is one")
    codec: Literal["auto", "exact", "bf16", "int8", "int8-nf4", "nf4"] = Field(
        "auto", description="how both parents are held; auto takes exact or int8"
    )


class Capture(_Section):
    """Which questions and positions the hidden states are kept for."""

    questions_per_class: Positive = 64
    positions: tuple[Literal["prompt", "last_prompt_token", "response"], ...] = Field(
        ("prompt", "response"), min_length=1
    )
    answer_tokens: Positive | None = Field(
        None, description="cut every answer after so many tokens, which capture and fit then read; all without it"
    )
    response_tokens: Positive | None = Field(None, description="keep the first R response tokens; all without it")
    response_stride: Positive = Field(1, description="of the response, keep every n-th token")
    skip_first_token: bool = Field(True, description="leave the attention sink at position 0 out")
    top_k: Positive | Literal["auto"] = Field(
        "auto",
        description="next-token log-probabilities kept a position, tail apart; auto: the least power of two that "
        "loses less than 1 % of the KL divergence, from one parent to the other and on the way",
    )


class Release(_Section):
    """Settings of `fit.preset: release`; the defaults are those of its best published run."""

    prompt_tokens: Positive = Field(1024, description="every prompt is padded or cut to this length")
    omega: NonNegative = Field(1000.0, description="weight of the contrastive term")
    temperature: float = Field(0.1, gt=0)
    start: float = Field(0.5, description="weight of the SHORT parent, as the release counts")
    learning_rate: float = Field(0.001, gt=0)
    epochs: Positive = 100
    batch: Positive = Field(16, description="questions of one label a step")


# The paper's objective in its corrected form: hidden states alone.
_PAPER = {"alignment_weight": 1.0, "contrastive_weight": 1.0, "kl_weight": 0.0, "sequential": True}
# AdaMerging's: no label and no answer is read, only how sure the merge is of its answer's first token.
_ADAMERGING = {"entropy_weight": 1.0, "kl_weight": 0.0, "kl_tokens": 1}
_FILLED_IN = {"paper": _PAPER, "adamerging": _ADAMERGING}


class Fit(_Section):
    """Objective and optimizer of lambda; the terms are logged apart."""

    preset: Literal["adaptive", "paper", "adamerging", "release"] = Field(
        "adaptive",
        description="defaults of the weights below: `adaptive`, as they stand here; `paper`, hidden states alone; "
        "`adamerging`, the entropy of an answer's first token; "
        "`release`: fit as the RPAM release does, its defects included; only `release` is read then",
    )
    release: Release = Release()

    granularity: Literal["scalar", "layer", "block", "matrix", "row", "low_rank"] = "layer"
    rank: Positive = Field(2, description="of `granularity: low_rank`: products of a row's and a column's number")
    start: float = 0.5
    alignment: Literal["gap", "mean", "raw", "cosine"] = Field("gap", description="form of the alignment term")
    alignment_weight: NonNegative = 0.0
    contrastive_weight: NonNegative = 0.0
    kl_weight: NonNegative = 1.0
    temperature: float = Field(0.1, gt=0, description="tau of the contrastive term")
    output_contrast_weight: NonNegative = Field(
        0.0, description="of leaving the other parent's distribution where the answer begins"
    )
    likelihood_weight: NonNegative = Field(0.0, description="of the selected answer's negative log-likelihood")
    entropy_weight: NonNegative = Field(0.0, description="of the entropy of the merge's own next-token distributions")
    output_temperature: float = Field(1.0, gt=0, description="tau of the output contrast, in nats")
    kl_form: Literal["sequence", "mean"] = Field(
        "sequence", description="sum over the answer's tokens, its divergence as a whole; or their mean"
    )
    decision_share: Share = Field(
        0.5, description="of `kl_form: mean`: share of the answer's first token; 0 weighs all tokens alike"
    )
    kl_tokens: Positive | None = Field(
        None, description="KL, likelihood and entropy read an answer's first so many tokens; all without it"
    )
    long_weight: float = Field(1.0, gt=0, description="weight of a question that selects Long, by that of the others")
    ridge: NonNegative = Field(0.0, description="weight of lambda's variance")
    smoothness: NonNegative = Field(0.0, description="weight of lambda's squared steps from layer to layer")
    sequential: bool = Field(False, description="start with a closed-form fit of the alignment, layer by layer")
    optimizer: Literal["lbfgs", "adam"] = Field("lbfgs", description="L-BFGS-B, or Adam, which needs more steps")
    steps: Positive = Field(30, description="of the joint fit at most, each a gradient on the whole calibration set")
    tolerance: NonNegative = Field(
        1e-3,
        description="stop when one step of L-BFGS-B, or ten of Adam, lower the loss by less than this share; 0: never",
    )
    learning_rate: float = Field(0.05, gt=0, description="of Adam")
    hessian: bool = Field(False, description="write the Hessian's eigenvalues (two gradients a lambda)")
    lower: float = Field(0.0, description="lambda is kept at or above this")
    upper: float = Field(1.0, description="lambda is kept at or below this")

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, raw: object) -> object:
        return _FILLED_IN.get(str(raw.get("preset")), {}) | raw if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Fit:
        for key, needs, read in (
            ("rank", "granularity: low_rank", self.granularity == "low_rank"),
            ("decision_share", "kl_form: mean", self.kl_form == "mean"),
            ("temperature", "contrastive_weight", self.contrastive_weight > 0),
            ("output_temperature", "output_contrast_weight", self.output_contrast_weight > 0),
            ("learning_rate", "optimizer: adam", self.optimizer == "adam"),
        ):
            if key in self.model_fields_set and not read and self.preset != "release":
                raise ValueError(f"`{key}` is read under `{needs}` alone; set that, or take it out")
        if not self.lower <= self.start <= self.upper:
            raise ValueError(f"`start` {self.start} must lie between `lower` {self.lower} and `upper` {self.upper}")
        return self


class Dial(_Section):
    """A family of merges, one for each price of a token, of which the best for a wish is taken."""

    prices: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (), description="points of accuracy that 1000 tokens must be worth; without any, one merge by the labels"
    )
    questions: Positive = Field(
        256, description="calibration questions set aside to choose on, a third of each level at most"
    )
    max_tokens_share: Share | None = Field(
        None, description="take the most accurate within this share of Long's tokens"
    )
    max_points_below_long: NonNegative | None = Field(
        None, description="take the cheapest that loses at most so many points to Long; 1 where neither is given"
    )

    @model_validator(mode="after")
    def _one_wish(self) -> Dial:
        if self.model_fields_set - {"prices"} and not self.prices:
            raise ValueError("`prices` is missing: without a family there is nothing to choose from")
        if self.max_tokens_share is not None and self.max_points_below_long is not None:
            raise ValueError("give `max_tokens_share` or `max_points_below_long`, not both")
        if len(set(self.prices)) < len(self.prices):
            raise ValueError(f"`prices` {list(self.prices)} holds one twice")
        return self


class Merge(_Section):
    """How the merged checkpoint is made and written."""

    method: str = Field(OURS, description="rpam: fitted coefficients; others as `rpam methods` lists them")
    options: dict[str, float] = Field({}, description="of another method than rpam")
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    shard_size: Size = Field(5 * 10**9, description="most bytes of weights a file")
    accelerator: Accelerator = Field("cpu", description="where merge and verification compute")
    donor: ParentName = Field("long", description="parent whose config, tokenizer and template are kept")
    think_prefill: Literal["keep", "drop"] = Field(
        "keep", description="a donor's template that opens the think block in the prompt: keep that, or drop it"
    )


class Export(_Section):
    """The unquantized GGUF file."""

    type: Literal["F32", "F16", "BF16"] = "F16"


class Quantize(_Section):
    """llama.cpp quantization types to make, by llama.cpp's own names."""

    types: tuple[str, ...] = ("Q8_0", "Q4_K_M")
    imatrix: bool = Field(True, description="weigh the errors by the merge's own inputs on the calibration set")
    overrides: dict[str, str] = Field({}, description="type of the tensors whose name holds a regular expression")
    output_type: str = Field("", description="type of the output head; llama.cpp's choice where empty")
    embedding_type: str = Field("", description="type of the embedding; likewise")
    threads: Positive = 2


class Ollama(_Section):
    """What the Modelfile sets: Ollama's own defaults cut a reasoning model's answers at 4096 tokens."""

    num_ctx: Positive = Field(16384, description="context, prompt and answer together")
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(20, ge=0)
    system: str = Field("", description="system prompt; none where empty")


class Fields(_Section):
    """Names of the fields of a question file."""

    question: str = "question"
    answer: str = "answer"
    level: str = "level"


class Eval(_Section):
    """Measurement in llama.cpp on held-out questions, greedy."""

    questions: Questions
    fields: Fields = Field(Fields(), description="names of its fields")
    grader: str = Field("math", description="math, exact, choice, regex, or package.module:function")
    pattern: str = Field("", description="of `grader: regex`: its first group is the answer")
    instruction: str = Field("", description="put behind every question")
    max_tokens: Positive = 4096
    parallel: Positive = 16
    scalar_curve: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    long_think_tokens: Positive = Field(32, description="an answer with this many think tokens is a long one")

    @model_validator(mode="after")
    def _sets_bring_their_own(self) -> Eval:
        graders = _graders(self.questions)
        if graders and (told := sorted(self.model_fields_set & {"fields", "instruction"})):
            raise ValueError(f"{', '.join(told)}: data sets bring their own; take it out, or name a file")
        for name, grader in graders.items():
            if grader != self.grader:
                raise ValueError(f"{name} is graded by `{grader}`; set `grader: {grader}`, and take other sets out")
        return self

    @property
    def file(self) -> Path:
        """The questions as a file, of data sets once they are drawn."""
        return _file_of(self.questions, "eval.questions")


class Recipe(_Section):
    """One recipe file."""

    version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(1, ge=0)
    threads: Positive = Field(2, description="of torch, in capture, statistics and fit")
    engine_threads: Positive = Field(
        2, description="of llama.cpp; its threads wait for each other by spinning, so stay below the idle cores"
    )
    parents: Parents
    label: Label
    memory: Memory = Memory()
    capture: Capture = Capture()
    fit: Fit = Fit()
    dial: Dial = Dial()
    merge: Merge = Merge()
    export: Export = Export()
    quantize: Quantize = Quantize()
    ollama: Ollama = Ollama()
    eval: Eval

    @model_validator(mode="after")
    def _prices_are_read(self) -> Recipe:
        if self.dial.prices and self.fit.preset in ("adamerging", "release"):
            raise ValueError(f"`dial.prices` is not read under `fit.preset: {self.fit.preset}`; take one of them out")
        return self


def parse_size(text: str, where: str) -> int:
    """Bytes of a size such as 6GiB; `where` it was given is named in the error.

    Raises:
        RpamError: It is none.
    """
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError:
        raise RpamError(f"{where} {text}: must be a size such as 6GiB, 500MB or a number of bytes.") from None


def with_dial(recipe: Recipe, prices: str, wish: Mapping[str, float | None]) -> Recipe:
    """The recipe with another dial, as the command line gives it.

    Args:
        recipe: What to change.
        prices: Numbers with commas between them.
        wish: By the names of `dial`; None where not given.

    Raises:
        RpamError: The prices are not such numbers, or the recipe has no place for them.
    """
    try:
        given = [float(price) for price in prices.split(",")]
        dial = {**recipe.dial.model_dump(), "max_tokens_share": None, "max_points_below_long": None}
        return Recipe.model_validate({**vars(recipe), "dial": {**dial, **wish, "prices": given}})
    except ValidationError as error:
        raise RpamError(f"--price {prices}: {_all_mistakes(error)}") from None
    except ValueError:
        raise RpamError(f"--price {prices}: must be numbers with commas between them, as 0,50,200.") from None


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; a bare name such as `tiny` finds the recipe that ships with us.

    A run folder stands for the recipe that it was last worked on with.

    Raises:
        RpamError: The file is missing, is not YAML, or has wrong keys or values (all of them named).
    """
    file = find_recipe(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RpamError(f"{file}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise RpamError(f"{file}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise RpamError(f"{file}: holds no recipe; copy recipes/tiny.yaml and edit it.")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RpamError(f"{file}: {_all_mistakes(error)}") from None
    return _with_absolute_paths(recipe, file.parent.resolve())


def shipped_folder() -> Path:
    """Where the recipes lie that come with us: of the installed wheel, or of the checkout."""
    installed = Path(str(resources.files("rpam_lite"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "recipes"


def find_recipe(path: Path) -> Path:
    """The recipe file: as given, of a run folder, or by name among those that come with us.

    Raises:
        RpamError: There is none.
    """
    if is_run_folder(path):
        return path / RUN_RECIPE
    known = path.suffix in (".yaml", ".yml") or not path.name
    names = [path] if known else [path, path.with_name(f"{path.name}.yaml")]
    for candidate in [*names, *(shipped_folder() / name for name in names if len(name.parts) <= 2)]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise RpamError(f"{path}: is a folder without {RUN_RECIPE} and {RUN_LOG}, so no run folder; name a recipe.")
    raise RpamError(f"{path}: no such recipe file; `rpam recipes ls` lists those that ship with rpam_lite.")


def _all_mistakes(error: ValidationError) -> str:
    mistakes = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            mistakes.append(f"unknown key `{place}`")
        elif item["type"] == "missing":
            mistakes.append(f"`{place}` is missing")
        else:
            mistakes.append(f"`{place}` is {item['input']!r}: {item['msg']}")
    return "; ".join(mistakes) + "."


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    parents = recipe.parents
    return recipe.model_copy(
        update={
            "parents": Parents(
                long=local_or_hub(folder, parents.long),
                short=local_or_hub(folder, parents.short),
                base=local_or_hub(folder, parents.base) if parents.base else None,
            ),
            "label": recipe.label.model_copy(update={"questions": _absolute(recipe.label.questions, folder)}),
            "eval": recipe.eval.model_copy(update={"questions": _absolute(recipe.eval.questions, folder)}),
        }
    )


def _absolute(questions: Path | QuestionSets, folder: Path) -> Path | QuestionSets:
    return folder / questions if isinstance(questions, Path) else questions
