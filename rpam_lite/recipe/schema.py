"""The schema of a recipe: everything a user can set, with its default.

Unknown keys are refused, and all mistakes of a file are reported at once. Questions are a file, or data
sets by name, of which the pipeline draws (pipeline/questions.py). After a change here, in fitting.py or in
values.py: `python -m rpam_lite.schemas docs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rpam_lite.recipe.fitting import Capture, Dial, Fit, Memory
from rpam_lite.recipe.values import (
    Accelerator,
    NonNegative,
    ParentName,
    Positive,
    Questions,
    Section,
    Share,
    Size,
    file_of,
    graders_of,
)

OURS = "rpam"  # the merge method that fits coefficients


class Parents(Section):
    """The two checkpoints to merge, and the one both were tuned from, if it is at hand.

    Each a folder (absolute once the recipe is loaded) or an id on the hub: org/name or org/name@revision.
    """

    long: Path = Field(description="the Long-CoT model: a folder, a LoRA adapter's, or org/name[@revision]")
    short: Path = Field(description="the Short-CoT model, likewise")
    base: Path | None = Field(None, description="what both were tuned from; adapters and some merge methods need it")


class Urls(Section):
    """Servers of the two parents, with an OpenAI-compatible interface."""

    long: str = Field(pattern=r"^https?://")
    short: str = Field(pattern=r"^https?://")


class Fields(Section):
    """Names of the fields of a question file."""

    question: str = "question"
    answer: str = "answer"
    level: str = "level"


class Asked(Section):
    """Questions that models are asked, and how the answers are graded."""

    questions: Questions = Field(
        description="a file, or data sets by name with a number or `all`, as {gsm8k:train: 200, math500: all}"
    )
    fields: Fields = Field(Fields(), description="names of its fields")
    grader: str = Field("math", description="math, exact, choice, regex, or package.module:function")
    pattern: str = Field("", description="of `grader: regex`: its first group is the answer")
    instruction: str = Field("", description="put behind every question")

    @model_validator(mode="after")
    def _sets_bring_their_own(self) -> Self:
        graders = graders_of(self.questions)
        if graders and (told := sorted(self.model_fields_set & {"fields", "instruction"})):
            raise ValueError(f"{', '.join(told)}: data sets bring their own; take it out, or name a file")
        for name, grader in graders.items():
            if grader != self.grader:
                raise ValueError(f"{name} is graded by `{grader}`; set `grader: {grader}`, and take other sets out")
        return self

    @property
    def file(self) -> Path:
        """The questions as a file, of data sets once they are drawn."""
        return file_of(self.questions)


class Label(Asked):
    """Pattern labels: sample both parents on `questions`, grade, and apply the rule."""

    rule: Literal["strict", "release", "ada-r1", "cost"] = Field(
        "strict", description="from both parents' samples to a label; another one samples nothing again"
    )
    price: NonNegative = Field(1.0, description="of `rule: cost`: points of accuracy that 1000 tokens must be worth")
    samples: Positive = Field(8, description="answers a question from each parent (k)")
    adaptive: bool = Field(False, description="stop sampling a question when its label is settled; k is the most")
    stop_probability: Share = Field(
        0.01, description="of `adaptive`: settled if all k would change the label with less than this; 0: if they can't"
    )
    temperature: NonNegative = Field(0.6, description="of sampling; 0 is greedy")
    top_p: Share = Field(0.95, description="of sampling: the most likely tokens with so much probability together")
    top_k: int = Field(20, ge=0, description="of sampling: so many most likely tokens; 0 keeps every token")
    max_tokens: Positive = Field(4096, description="a longer answer is cut off, and wrong")
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
        return self


class Merge(Section):
    """How the merged checkpoint is made and written."""

    method: str = Field(OURS, description="rpam: fitted coefficients; others as `rpam methods` lists them")
    options: dict[str, float] = Field({}, description="of another method than rpam")
    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="of the merged checkpoint")
    shard_size: Size = Field(5 * 10**9, description="most bytes of weights a file")
    accelerator: Accelerator = Field("cpu", description="where merge and verification compute")
    donor: ParentName = Field("long", description="parent whose config, tokenizer and template are kept")
    think_prefill: Literal["keep", "drop"] = Field(
        "keep", description="a donor's template that opens the think block in the prompt: keep that, or drop it"
    )


class Export(Section):
    """The unquantized GGUF file."""

    type: Literal["F32", "F16", "BF16"] = Field("F16", description="of its matrices")


class Quantize(Section):
    """llama.cpp quantization types to make, by llama.cpp's own names."""

    types: tuple[str, ...] = Field(("Q8_0", "Q4_K_M"), description="one file each; all are measured")
    imatrix: bool = Field(True, description="weigh the errors by the merge's own inputs on the calibration set")
    overrides: dict[str, str] = Field({}, description="type of the tensors whose name holds a regular expression")
    output_type: str = Field("", description="type of the output head; llama.cpp's choice where empty")
    embedding_type: str = Field("", description="type of the embedding; likewise")
    threads: Positive = Field(2, description="of llama.cpp's quantization")


class Ollama(Section):
    """What the Modelfile sets: Ollama's own defaults cut a reasoning model's answers at 4096 tokens."""

    num_ctx: Positive = Field(16384, description="context, prompt and answer together")
    temperature: float = Field(0.6, ge=0, description="of sampling")
    top_p: float = Field(0.95, gt=0, le=1, description="of sampling")
    top_k: int = Field(20, ge=0, description="of sampling")
    system: str = Field("", description="system prompt; none where empty")


class Eval(Asked):
    """Measurement in llama.cpp on held-out questions, greedy."""

    max_tokens: Positive = Field(4096, description="a longer answer is cut off, and wrong")
    parallel: Positive = Field(16, description="sequences decoded side by side")
    scalar_curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="lambdas of plain interpolations to measure beside the merge, each a whole model",
    )
    long_think_tokens: Positive = Field(32, description="an answer with this many think tokens is a long one")

    @field_validator("scalar_curve")
    @classmethod
    def _has_a_name_each(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        """Files and rows are named by six digits."""
        if len({f"{weight:g}" for weight in weights}) < len(set(weights)):
            raise ValueError("two lambdas are the same in their first six digits")
        return weights


class Recipe(Section):
    """One recipe file."""

    version: Literal[1] = Field(description="of the recipe's form")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the merge; its run folder is runs/NAME")
    seed: int = Field(1, ge=0, description="of sampling, of questions drawn and chosen, of intervals")
    threads: Positive = Field(2, description="of torch, in capture, statistics and fit")
    engine_threads: Positive = Field(
        2,
        description="of llama.cpp; its threads wait for each other by spinning, so stay below the idle cores. "
        "Of models below 1 GiB together, `threads` / `engine_threads` are measured side by side",
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

    @property
    def family(self) -> Dial:
        """The dial; an empty one where the merge method has no coefficients that a fit could find."""
        return self.dial if self.merge.method == OURS else Dial()

    @property
    def reads_hidden_states(self) -> bool:
        """Whether the fit, or what the merge method measures, reads the parents' hidden states."""
        fit = self.fit
        return self.merge.method != OURS or fit.sequential or fit.alignment_weight > 0 or fit.contrastive_weight > 0

    @property
    def objective(self) -> Fit:
        """`fit`, with the `kl_form` that the dial asks for where it says none."""
        decides = self.family.decides and self.fit.kl_form == "auto"
        return self.fit.model_copy(update={"kl_form": "execution"}) if decides else self.fit

    @model_validator(mode="after")
    def _dial_and_fit_go_together(self) -> Recipe:
        dial, fit = self.dial, self.fit
        if dial.settings and fit.preset in ("adamerging", "release"):
            key = next(k for k in dial.model_dump(exclude_defaults=True) if k not in ("by", "questions"))
            raise ValueError(f"`dial.{key}` is not read under `fit.preset: {fit.preset}`; take one of them out")
        if dial.decides and (told := _against_a_row(fit)):
            raise ValueError(
                f"{told}: under a dial `by: decision` both parents' answers are fitted; set `dial.by: fit`"
            )
        if fit.kl_form == "execution" and not dial.decides:
            raise ValueError(
                "`fit.kl_form: execution` leaves the choice between long and short to a dial `by: decision`; add one"
            )
        return self


def _against_a_row(fit: Fit) -> str:
    """What of the objective pulls one prompt to both parents at once, or reads nothing; empty if nothing does."""
    if fit.preset == "paper":
        return "`fit.preset: paper` draws a prompt's hidden states to one parent"
    for term in ("alignment", "contrastive", "output_contrast"):
        if getattr(fit, f"{term}_weight") > 0:
            return f"`fit.{term}_weight` draws a prompt to one parent"
    if fit.kl_tokens == 1:
        return "`fit.kl_tokens: 1` reads the first token alone, which a row decides"
    return ""
