"""What the label stage samples: which engine runs a parent, and where its samples are kept.

Samples stand in `samples/` of the run folder, beside `label/`: another rule, price or k makes `label/`
anew and must find them. A file's name holds a hash of all that its samples depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpam_lite.checkpoint.files import adapter_base
from rpam_lite.pipeline.artefacts import parent_gguf
from rpam_lite.pipeline.stage import Run, identity

if TYPE_CHECKING:
    from export.gguf.write import GgufType
    from quant.engines import Engine
    from quant.tasks.questions import Question
    from rpam_lite.patterns.rule import Rule


def draw_samples(
    run: Run, questions: Sequence[Question], prompts: Mapping[str, tuple[int, ...]], think_open: bool, rule: Rule
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Graded samples of both parents, by parent and question key; only what is missing is sampled."""
    from quant.engines import Sampling
    from rpam_lite.patterns.adaptive import draw_in_rounds, drawn, forecast, is_settled
    from rpam_lite.patterns.samples import Sampler
    from rpam_lite.preflight.questions import grading_of

    settings = run.recipe.label
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, run.recipe.seed)
    fresh = {"long": 0, "short": 0}

    def begin(name: str, missing: int) -> Callable[[], None]:
        fresh[name] += missing
        return partial(run.progress.start(f"sampling {name}", missing), "")

    def settled(long: Sequence[dict[str, Any]], short: Sequence[dict[str, Any]]) -> bool:
        seen = drawn(long), drawn(short)
        ahead = forecast(rule, *seen, settings.samples, settings.max_tokens)
        return is_settled(ahead, *seen, settings.stop_probability)

    with ExitStack() as stack:
        samplers = {
            name: stack.enter_context(
                Sampler(
                    partial(open_parent, run, name),
                    questions,
                    prompts,
                    sampling,
                    settings.max_tokens,
                    sample_file(run, name),
                    grading_of(settings, questions),
                    _encoder(run),
                    partial(begin, name),
                    think_open,
                )
            )
            for name in fresh
        }
        found = draw_in_rounds(
            [q.key for q in questions],
            settings.samples,
            {name: sampler.draw for name, sampler in samplers.items()},
            settled if settings.adaptive else None,
            settings.parallel,
        )
    for name, new in fresh.items():
        rows = [row for own in found[name].values() for row in own]
        most = len(questions) * settings.samples
        run.say(f"{name}: {len(rows)} of {most} samples needed, {new} drawn now; {_verdicts(rows)}")
    return found


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many samples are right, and how many hold no answer at all, and why."""
    from quant.tasks.grader import UNANSWERED

    wrong = [row["reason"] for row in rows if not row["correct"]]
    unanswered = Counter(reason for reason in wrong if reason in UNANSWERED)
    told = ", ".join(f"{count} {reason}" for reason, count in unanswered.most_common())
    return f"{len(rows) - len(wrong)} right, {len(wrong)} wrong" + (f" ({told})" if told else "")


def sample_file(run: Run, name: str) -> Path:
    """File of a parent's samples, named by what they depend on beside their prompt and seed."""
    recipe, settings = run.recipe, run.recipe.label
    path = getattr(recipe.parents, name)
    weights = [path, *filter(None, [adapter_base(path, recipe.parents.base)])]
    donor = getattr(recipe.parents, recipe.merge.donor)
    kind = {
        "gguf": [_gguf_type(run), identity((adapter_base(donor, recipe.parents.base) or donor) / "tokenizer.json")],
        "http": [getattr(settings.urls, name, "")],
    }.get(settings.engine, [])
    asked = [settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, recipe.seed]
    parts = [name, [identity(folder) for folder in weights], settings.engine, kind, asked]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return run.folder / "samples" / f"{name}-{digest}.jsonl"


@contextmanager
def open_parent(run: Run, name: str) -> Iterator[Engine]:
    """A parent on the engine that `label.engine` names."""
    recipe, settings = run.recipe, run.recipe.label
    if settings.engine == "gguf":
        from quant.engines.llama_cpp import LlamaCppEngine

        with _sampled_gguf(run, name) as file, LlamaCppEngine(file, settings.parallel, recipe.engine_threads) as engine:
            yield engine
    elif settings.urls is not None:
        from quant.engines.http import HttpEngine

        with HttpEngine(
            getattr(settings.urls, name), tokenizer=run.pair().donor.folder, parallel=settings.parallel
        ) as served:
            yield served
    else:
        from quant.engines.transformers import TransformersEngine
        from rpam_lite.preflight.engine import BITS

        folder, bits = getattr(recipe.parents, name), BITS[settings.engine]
        with TransformersEngine(folder, bits, settings.parallel) as loaded:
            yield loaded


def _gguf_type(run: Run) -> GgufType:
    return run.recipe.label.type or run.recipe.export.type


@contextmanager
def _sampled_gguf(run: Run, name: str) -> Iterator[Path]:
    """The GGUF file to sample: the one that is measured later, or one of `label.type`, there for as long."""
    from export.gguf.write import write_gguf

    kind = _gguf_type(run)
    if kind == run.recipe.export.type:
        yield parent_gguf(run, name)
        return
    long, short, donor = run.pair()
    file = run.of("label") / f"{name}-{kind.lower()}.gguf"
    try:
        write_gguf({"long": long, "short": short}[name], donor.config, donor.folder, file, kind, name)
        yield file
    finally:
        file.unlink(missing_ok=True)


def _encoder(run: Run) -> Callable[[str], tuple[int, ...]]:
    """Token ids of a text in the donor's vocabulary; only servers may tell none themselves."""
    if run.recipe.label.engine != "http":
        return lambda text: ()
    from quant.engines.chat import ChatTokenizer

    return ChatTokenizer(run.pair().donor.folder).encode
