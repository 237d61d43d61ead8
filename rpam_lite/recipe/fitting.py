"""The sections on how coefficients are found: memory, capture, fit and dial."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from rpam_lite.recipe.values import Accelerator, NonNegative, Positive, Section, Share, Size

CodecName = Literal["exact", "bf16", "int8", "int8-nf4", "nf4"]


class Memory(Section):
    """What capture and fit may use; without a value, most of what is free now."""

    device: Size | None = Field(None, description="of the GPU, such as 6GiB; not read on a CPU")
    host: Size | None = Field(None, description="of the machine's own memory, such as 16GiB")
    disk: Size | None = Field(None, description="below the run folder, for what does not fit in memory")
    accelerator: Accelerator = Field("auto", description="where capture and fit compute; auto: a GPU if there is one")
    codec: Literal["auto", CodecName] = Field("auto", description="how both parents are held; auto takes exact or int8")

    @property
    def fixed_codec(self) -> CodecName | None:
        """The codec that was asked for; None where the plan chooses."""
        return None if self.codec == "auto" else self.codec


# Settings of `capture` that only matter where hidden states are read.
OF_HIDDEN_STATES = {"positions", "response_tokens", "response_stride", "skip_first_token"}


class Capture(Section):
    """Which questions and positions the hidden states are kept for."""

    questions_per_class: Positive = Field(64, description="questions of each label at most that lambda is fitted on")
    positions: tuple[Literal["prompt", "last_prompt_token", "response"], ...] = Field(
        ("prompt", "response"),
        min_length=1,
        description="whose hidden states are kept, where the objective reads any; the default one does not",
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


class Release(Section):
    """Settings of `fit.preset: release`; the defaults are those of its best published run."""

    prompt_tokens: Positive = Field(1024, description="every prompt is padded or cut to this length")
    omega: NonNegative = Field(1000.0, description="weight of the contrastive term")
    temperature: float = Field(0.1, gt=0, description="tau of the contrastive term")
    start: float = Field(0.5, description="weight of the SHORT parent, as the release counts")
    learning_rate: float = Field(0.001, gt=0, description="of Adam")
    epochs: Positive = Field(100, description="passes over the questions")
    batch: Positive = Field(16, description="questions of one label a step")


# The paper's objective in its corrected form: hidden states alone.
_PAPER = {"alignment_weight": 1.0, "contrastive_weight": 1.0, "kl_weight": 0.0, "sequential": True}
# AdaMerging's: no label and no answer is read, only how sure the merge is of its answer's first token.
_ADAMERGING = {"entropy_weight": 1.0, "kl_weight": 0.0, "kl_tokens": 1}
_FILLED_IN = {"paper": _PAPER, "adamerging": _ADAMERGING}


class Fit(Section):
    """Objective and optimizer of lambda; the terms are logged apart."""

    preset: Literal["adaptive", "paper", "adamerging", "release"] = Field(
        "adaptive",
        description="defaults of the weights below: `adaptive`, as they stand here; `paper`, hidden states alone; "
        "`adamerging`, the entropy of an answer's first token; "
        "`release`: fit as the RPAM release does, its defects included; only `release` is read then",
    )
    release: Release = Field(Release(), description="of `preset: release`")

    granularity: Literal["scalar", "layer", "block", "matrix", "row", "low_rank"] = Field(
        "layer",
        description="what shares one lambda: the model, a layer, its attention or MLP, a matrix, an output row; "
        "low_rank: one a weight, of few numbers",
    )
    rank: Positive = Field(2, description="of `granularity: low_rank`: products of a row's and a column's number")
    start: float = Field(0.5, description="lambda before the fit")
    alignment: Literal["gap", "mean", "raw", "cosine"] = Field("gap", description="form of the alignment term")
    alignment_weight: NonNegative = Field(0.0, description="of the distance to the selected parent's hidden states")
    contrastive_weight: NonNegative = Field(0.0, description="of hidden states nearer to the selected parent's")
    kl_weight: NonNegative = Field(1.0, description="of the divergence from the parent's next-token distributions")
    temperature: float = Field(0.1, gt=0, description="tau of the contrastive term")
    output_contrast_weight: NonNegative = Field(
        0.0, description="of leaving the other parent's distribution where the answer begins"
    )
    likelihood_weight: NonNegative = Field(0.0, description="of the selected answer's negative log-likelihood")
    entropy_weight: NonNegative = Field(0.0, description="of the entropy of the merge's own next-token distributions")
    output_temperature: float = Field(1.0, gt=0, description="tau of the output contrast, in nats")
    kl_form: Literal["auto", "sequence", "mean", "execution"] = Field(
        "auto",
        description="sequence: sum over the answer's tokens, its divergence as a whole; mean: their mean; execution: "
        "log(1 + the sum without the first token), which a decision row sees to; auto: execution under a dial "
        "`by: decision`, else sequence",
    )
    decision_share: Share = Field(
        0.5, description="of `kl_form: mean`: share of the answer's first token; 0 weighs all tokens alike"
    )
    kl_tokens: Positive | None = Field(
        None, description="KL, likelihood and entropy read an answer's first so many tokens; all without it"
    )
    long_weight: float = Field(
        1.0,
        gt=0,
        description="weight of a question that selects Long, by that of the others; under a dial `by: decision`, of "
        "Long's answers together, of which 1 is three times Short's",
    )
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

    @property
    def form(self) -> Literal["sequence", "mean", "execution"]:
        """What `kl_form` stands for where no dial decides."""
        return "sequence" if self.kl_form == "auto" else self.kl_form

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


class Setting(NamedTuple):
    """Which member of a dial's family: by a price of a token, a budget of tokens, or the points that it may lose."""

    kind: Literal["price", "budget", "points"]
    value: float

    @property
    def name(self) -> str:
        """In words: `price 100`, `budget 60 %`, `within 2 points`."""
        return f"{'within' if self.kind == 'points' else self.kind} {self.label}"

    @property
    def label(self) -> str:
        """As a picture has it: `100`, `60 %`, `2 points`."""
        if self.kind == "points":
            return f"{self.value:g} point{'' if self.value == 1 else 's'}"
        return f"{self.value:g}" if self.kind == "price" else f"{100 * self.value:g} %"

    @property
    def stem(self) -> str:
        """As part of a file's name: `price-100`, `budget-0.6`, `points-2`."""
        return f"{self.kind}-{self.value:g}"


_KEYS: dict[Literal["price", "budget", "points"], str] = {"price": "prices", "budget": "budgets", "points": "points"}


class Dial(Section):
    """A family of merges, of which the best for a wish is taken; a row is made for the wish itself too."""

    by: Literal["decision", "fit"] = Field(
        "decision",
        description="decision: one fit of how both parents answer, and for each member a row of the output head that "
        "decides which questions to think about; fit: a fit of all lambdas for each price",
    )
    prices: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (), description="points of accuracy that 1000 tokens must be worth; without any member, one merge by the labels"
    )
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="shares of Long's mean tokens that an answer may have on average; `by: decision` alone"
    )
    points: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (),
        description="points of accuracy that a merge may lose to Long, in as few tokens as that takes; "
        "`by: decision` alone",
    )
    questions: Annotated[int, Field(ge=0)] = Field(
        256,
        description="calibration questions set aside to measure the members on, a third of each level at most; 0 "
        "measures nothing and chooses by the parents' answers, `by: decision` alone",
    )
    max_tokens_share: Share | None = Field(
        None,
        description="take the most accurate within this share of Long's tokens; with `by: decision` a budget too",
    )
    max_points_below_long: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="take the cheapest that loses at most so many points to Long, 1 where neither is given; with "
        "`by: decision` one of the `points` too",
    )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every member, the prices first and the one wished for last."""
        named = [Setting(kind, value) for kind, key in _KEYS.items() for value in getattr(self, key)]
        wish = self._wish
        return (*named, *([wish] if wish is not None and wish.stem not in {s.stem for s in named} else []))

    @property
    def _wish(self) -> Setting | None:
        """A row can be made for a wish; what a fit will do is known only afterwards."""
        if self.by == "decision" and self.max_tokens_share is not None:
            return Setting("budget", self.max_tokens_share)
        if self.by == "decision" and self.max_points_below_long is not None:
            return Setting("points", self.max_points_below_long)
        return None

    @property
    def decides(self) -> bool:
        """Whether the members differ in a decision row."""
        return self.by == "decision" and bool(self.settings)

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> Dial:
        for key in ("budgets", "points"):
            if self.by == "fit" and getattr(self, key):
                raise ValueError(f"`{key}` needs `by: decision`: what a fit will do is not known; give `prices`")
        if self.by == "fit" and not self.questions:
            raise ValueError("`questions` 0 needs `by: decision`: what a fit does is known only once it is measured")
        if self.model_fields_set - set(_KEYS.values()) and not self.settings:
            by_row = self.by == "decision"
            keys = "`budgets`, `points`, `prices` or a wish is" if by_row else "under `by: fit` `prices` are"
            raise ValueError(f"{keys} missing: without a family there is nothing to choose from")
        if self.max_tokens_share is not None and self.max_points_below_long is not None:
            raise ValueError("give `max_tokens_share` or `max_points_below_long`, not both")
        for kind, key in _KEYS.items():
            stems = [Setting(kind, value).stem for value in getattr(self, key)]
            if len(set(stems)) < len(stems):
                raise ValueError(f"`{key}` {list(getattr(self, key))} holds one twice (six digits count)")
        return self
