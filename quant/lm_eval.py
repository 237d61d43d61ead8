"""Our engines as a model of EleutherAI's lm-evaluation-harness.

    from quant import load
    from quant.lm_eval import run_lm_eval
    found = run_lm_eval(load("merged-q4_k_m.gguf", context=8192), ["gsm8k", "arc_challenge"], limit=200)
    print(found["results"])

The harness comes with the extra `lm-eval`. Tasks that generate run on every engine whose text can be tokenized here;
those that score given text (multiple choice, perplexity) need a GGUF file, whose logits llama.cpp tells.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm  # type: ignore[import-untyped]

from quant.engines import Engine, Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.lm_eval_texts import Texts, score, texts_of
from quant.tasks.extract import after_think
from rpam_lite.errors import RpamError

_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
_MAX_TOKENS = 256  # the harness's own default
_WINDOW = 2048  # tokens of a rolling perplexity's window, where neither the engine nor the file tells fewer


def run_lm_eval(
    engine: Engine,
    tasks: Sequence[str],
    limit: int | None = None,
    *,
    chat: bool = True,
    shots: int | None = None,
    include: str | Path | None = None,
    harness_tasks: bool = True,
    tokenizer: str | Path | None = None,
    max_tokens: int | None = None,
    drop_thinking: bool = True,
    system: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate an engine on tasks of the harness.

    Args:
        engine: See `quant.load`.
        tasks: Names of the harness, groups and tags too.
        limit: The first so many documents of each task; all if None.
        chat: Put every document into the model's chat template, examples as turns.
        shots: Examples before each question; as the task says if None.
        include: Folder of more task files.
        harness_tasks: Know the harness's own tasks too; to read their thousands of files takes half a minute.
        tokenizer: Folder whose tokenizer and chat template make the prompts, where the engine has none itself.
        max_tokens: Most generated tokens instead of what a task says, which is little for a reasoning model.
        drop_thinking: Give the tasks' filters only what follows the think block.
        system: The system turn.
        seed: Of the engine's sampling; the harness keeps its own seeds.

    Returns:
        What `lm_eval.simple_evaluate` returns: `results` by task, `samples`, `configs` and more.

    Raises:
        RpamError: There is no such task, the engine can't be tokenized for, it can't score text and a task needs that,
            or it fails.
    """
    manager = TaskManager(include_path=None if include is None else str(include), include_defaults=harness_tasks)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise RpamError(
            f"task {unknown[0]!r}: lm-evaluation-harness has no such task; list them with `lm_eval ls tasks`, or name "
            "the folder of your own with `include`."
        )
    model = EngineLM(engine, texts_of(engine, tokenizer), max_tokens, drop_thinking, chat and engine.opens_think, seed)
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        system_instruction=system,
        task_manager=manager,
    )
    return found


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine as the harness asks it.

    Args:
        engine: Answers.
        texts: Its tokenizer and chat template.
        max_tokens: Most generated tokens instead of what a task says.
        drop_thinking: Leave out what comes before the end of the think block; all of it where it never ends.
        opens_think: Whether the prompts end in an open think block, as the engine's chat template may.
        seed: Hashed with the number of each request.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Texts,
        max_tokens: int | None = None,
        drop_thinking: bool = True,
        opens_think: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.engine, self.texts = engine, texts
        self._max_tokens, self._seed = max_tokens, seed
        self._drop_thinking, self._opens_think = drop_thinking, opens_think

    @property
    def eot_token_id(self) -> int:
        """The token that ends an answer."""
        return self.texts.end

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on: the token that begins texts, else the one that ends them."""
        return self.texts.end if self.texts.begin is None else self.texts.begin

    @property
    def tokenizer_name(self) -> str:
        """The harness keeps its own cache of prompts under this."""
        return f"{self.engine.name}-{self.engine.identity}".replace("/", "-")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template, for the harness's records."""
        return self.texts.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as the text that the model reads; without `add_generation_prompt` the last turn is left open."""
        return self.texts.chat(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, the token that begins texts once at the beginning unless `add_special_tokens` is False."""
        ids = list(self.texts.encode(string))
        begin = self.texts.begin
        return ids if add_special_tokens is False or begin is None or ids[:1] == [begin] else [begin, *ids]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Complete texts up to their stop strings.

        Engines know no stop strings: what follows one is generated and cut off.

        Raises:
            RpamError: A generation setting is not known, or the engine fails.
        """
        asked, stops = [], []
        for number, (text, settings) in enumerate(request.args for request in requests):
            # Repeats of one document differ in their number only, and must differ in what they draw.
            sampling = sampling_of(settings, zlib.crc32(f"{self._seed}/{number}".encode()))
            max_tokens = self._max_tokens or int(settings.get("max_gen_toks", _MAX_TOKENS))
            asked.append(Request(str(number), tuple(self.tok_encode(text)), max_tokens, sampling))
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
        answers = [""] * len(asked)
        completions = tqdm(
            self.engine.generate(asked), total=len(asked), desc="generate_until", disable=disable_tqdm or not asked
        )
        for completion in completions:
            number = int(completion.key)
            answers[number] = self._answer(completion.text, stops[number])
            self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows as long as the context, each token scored once.

        Raises:
            RpamError: The engine can't score text.
        """
        room = self._window()
        found = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, room, 1))
            scored = self._loglikelihood_tokens([(("", text), *window) for window in windows])
            found.append(sum(logprob for logprob, _ in scored))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind its context, and whether greedy decoding would give it."""
        engine = self._scoring_engine()
        found = []
        for texts, context, continuation in tqdm(requests, desc="loglikelihood", disable=disable_tqdm):
            told = score(engine, context, continuation)
            found.append(told)
            self.cache_hook.add_partial("loglikelihood", texts, told)
        return found

    def _answer(self, text: str, until: Sequence[str]) -> str:
        # First, since a stop string inside the reasoning ends nothing: it would leave no answer at all.
        if self._drop_thinking:
            text = after_think(text, self._opens_think) or ""
        return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]

    def _scoring_engine(self) -> LlamaCppEngine:
        if not isinstance(self.engine, LlamaCppEngine):
            raise RpamError(
                f"{self.engine.name}: only a GGUF file can score given text, which this task asks for (multiple "
                "choice, perplexity); export the model, or choose a task that generates."
            )
        return self.engine

    def _window(self) -> int:
        engine = self._scoring_engine()
        architecture = engine.metadata("general.architecture")
        trained = int(engine.metadata(f"{architecture}.context_length") or _WINDOW)
        return min(trained, engine.context or _WINDOW)


def sampling_of(settings: Mapping[str, Any], seed: int) -> Sampling:
    """A task's `generation_kwargs` as ours; greedy unless they ask to sample, as in transformers.

    Raises:
        RpamError: A setting is none that engines know.
    """
    if unknown := sorted(set(settings) - set(_KNOWN)):
        raise RpamError(
            f"the task's generation_kwargs set {unknown[0]!r}, which engines don't know; they know {', '.join(_KNOWN)}."
        )
    temperature = float(settings.get("temperature") or 0.0)
    if not settings.get("do_sample", temperature > 0):
        return Sampling(seed=seed)
    return Sampling(
        temperature if "temperature" in settings else 1.0,
        float(settings.get("top_p", 1.0)),
        int(settings.get("top_k", 0)),
        seed,
    )
