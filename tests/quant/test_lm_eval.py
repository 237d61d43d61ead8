"""lm-evaluation-harness on our engines: a local task each of the three kinds, no network.

Skipped where the extra `lm-eval` is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed (pip install 'rpam_lite[lm-eval]')")

from quant.engines import Completion, Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.engines.transformers import TransformersEngine
from quant.lm_eval import EngineLM, run_lm_eval, sampling_of
from quant.lm_eval_texts import Texts, texts_of
from quant.siblings import CarEngine, Gate, Way
from rpam_lite.errors import RpamError

run_own = partial(run_lm_eval, harness_tasks=False)  # its own tasks are thousands of files
QUESTIONS = [f"What is {i} + {i}?" for i in range(4)]


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(gguf, 4, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, engine: LlamaCppEngine) -> Path:
    """Tasks whose gold answers are what the model says: all must be right."""
    path = tmp_path_factory.mktemp("tasks")
    asked = [Request(str(i), engine.chat_prompt(q), 6) for i, q in enumerate(QUESTIONS)]
    said = {c.key: c.text for c in engine.generate(asked)}
    rows = [
        {"question": q, "answer": said[str(i)], "choices": [" one", " two times", " 3"], "gold": 0}
        for i, q in enumerate(QUESTIONS)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    kinds: dict[str, dict[str, Any]] = {
        "says": {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["<never>"], "max_gen_toks": 6},
            "metric_list": [{"metric": "exact_match"}],
        },
        "chooses": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "reads": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
    }
    for name, kind in kinds.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kind}), encoding="utf-8")
    return path


def asked(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=a) for a in arguments]


@pytest.fixture
def model(engine: LlamaCppEngine) -> EngineLM:
    return EngineLM(engine, texts_of(engine))


Reference = Callable[[Sequence[int], int], tuple[float, bool]]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """Log-probability of tokens[first:] in transformers, and whether each is the likeliest."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def score(tokens: Sequence[int], first: int) -> tuple[float, bool]:
        with torch.inference_mode():
            rows = hf(torch.tensor([list(tokens)])).logits[0, first - 1 : -1].double().log_softmax(-1)
        following = torch.tensor(tokens[first:])
        return float(rows.gather(1, following[:, None]).sum()), bool((rows.argmax(1) == following).all())

    return score


def test_all_three_kinds_of_task_run(engine: LlamaCppEngine, tasks: Path, reference: Reference) -> None:
    found = run_own(engine, ["says", "chooses"], include=tasks)
    assert found["results"]["says"]["exact_match,none"] == 1.0
    assert found["n-samples"]["says"]["effective"] == 4
    told = found["samples"]["says"][0]["arguments"][0][0]
    assert engine.tokenize(told) == engine.chat_prompt(QUESTIONS[0])
    chosen = found["samples"]["chooses"][0]["filtered_resps"]
    assert len({logprob for logprob, _ in chosen}) == 3
    best = [int(np.argmax([logprob for logprob, _ in s["filtered_resps"]])) for s in found["samples"]["chooses"]]
    assert found["results"]["chooses"]["acc,none"] == best.count(0) / 4

    read = run_own(engine, ["reads"], limit=2, include=tasks, chat=False)
    end = texts_of(engine).end
    total = sum(reference([end, *engine.tokenize(q)], 1)[0] for q in QUESTIONS[:2])
    expected = np.exp(-total / sum(len(q) for q in QUESTIONS[:2]))
    assert read["results"]["reads"]["byte_perplexity,none"] == pytest.approx(expected, rel=0.02)


def test_log_likelihoods_are_those_of_transformers(
    engine: LlamaCppEngine, model: EngineLM, reference: Reference
) -> None:
    context = "What is 3 + 4? Tom has 5 apples and 6 books." * 3
    pairs = [(context, " He has 2 cups"), ("", "Tom has 5"), (context + " ", "apples")]
    found = model.loglikelihood(asked(*pairs), disable_tqdm=True)
    # A space that ends the context belongs to the continuation's first token.
    begins = [engine.tokenize(context), (model.prefix_token_id,), engine.tokenize(context)]
    for (before, after), begin, (logprob, greedy) in zip(pairs, begins, found, strict=True):
        whole = engine.tokenize(before + after) if before else (*begin, *engine.tokenize(after))
        expected = reference(whole, len(begin))
        assert logprob == pytest.approx(expected[0], abs=0.03 * (len(whole) - len(begin)))
        assert greedy is expected[1] is False
    (said,) = engine.generate([Request("a", begins[0], 8)])
    for continuation, greedy in ((said.token_ids, True), ((*said.token_ids[:-1], 0), False)):
        ((logprob, told),) = model._loglikelihood_tokens([(("", ""), [*begins[0]], [*continuation])])
        assert logprob == pytest.approx(reference((*begins[0], *continuation), len(begins[0]))[0], abs=0.2)
        assert told is greedy


def test_a_rolling_log_likelihood_scores_each_token_once(
    engine: LlamaCppEngine, model: EngineLM, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Tom has 5 apples. He buys 6 more. How many apples does Tom have now?"
    ids = [model.prefix_token_id, *engine.tokenize(text)]
    assert len(ids) > 20
    (whole,) = model.loglikelihood_rolling(asked((text,)))
    assert whole == pytest.approx(reference(ids, 1)[0], abs=0.02 * len(ids))
    # Windows of 16: the last one reaches back as far as it can, and scores only what is new.
    monkeypatch.setattr(engine, "context", 16)
    (windowed,) = model.loglikelihood_rolling(asked((text,)))
    expected, done = 0.0, 1
    while done < len(ids):
        upto = min(done + 16, len(ids))
        start = max(0, upto - 17)
        expected += reference(ids[start:upto], done - start)[0]
        done = upto
    assert windowed == pytest.approx(expected, abs=0.02 * len(ids))
    assert abs(windowed - whole) > 0.1


def test_answers_end_at_stop_strings_and_keep_their_order(engine: LlamaCppEngine, model: EngineLM) -> None:
    texts = [texts_of(engine).chat([{"role": "user", "content": q}], True) for q in QUESTIONS]
    wanted = [Request(str(i), engine.tokenize(text), 9 - 2 * i) for i, text in enumerate(texts)]
    free = {c.key: c.text for c in engine.generate(wanted)}
    requests = asked(*((text, {"max_gen_toks": 9 - 2 * i}) for i, text in enumerate(texts)))
    assert model.generate_until(requests, disable_tqdm=True) == [free[str(i)] for i in range(4)]
    stop = free["0"][3:5]
    before = free["0"][: free["0"].index(stop)]
    for until in (stop, ["<never>", stop], [free["0"][-1:], stop]):
        (answer,) = model.generate_until(asked((texts[0], {"until": until, "max_gen_toks": 9})), disable_tqdm=True)
        first = min(free["0"].index(s) for s in ([until] if isinstance(until, str) else until) if s in free["0"])
        assert answer == free["0"][:first]
        assert len(answer) <= len(before)
    bounded = EngineLM(engine, texts_of(engine), max_tokens=3)
    (request,) = engine.generate([replace(wanted[0], max_tokens=3)])
    assert bounded.generate_until(asked((texts[0], {"max_gen_toks": 9})), disable_tqdm=True) == [request.text]


@pytest.mark.parametrize(
    ("text", "opens", "drop", "answer"),
    [
        ("<think>a. b</think> c. d", False, True, " c"),
        ("a. b</think> c. d", True, True, " c"),
        ("<think>a. b", False, True, ""),
        ("a b", True, True, ""),
        ("a. b", False, True, "a"),
        ("<think>a. b</think> c. d", False, False, "<think>a"),
    ],
)
def test_a_think_block_is_no_answer(text: str, opens: bool, drop: bool, answer: str) -> None:
    said = Completion("0", (), (text.encode(),), "stop", 5)
    fake: Any = SimpleNamespace(name="fake", identity="1", generate=lambda requests: iter([said]))
    texts = Texts("fake", lambda t: tuple(t.encode()), lambda turns, follows: "", None, None, 0)
    model = EngineLM(fake, texts, drop_thinking=drop, opens_think=opens)
    assert model.generate_until(asked(("q", {"until": ["."]})), disable_tqdm=True) == [answer]


def test_generation_settings_become_ours() -> None:
    assert sampling_of({"do_sample": False, "temperature": 0.7, "until": ["a"]}, 3) == Sampling(seed=3)
    assert sampling_of({"temperature": 0.7, "top_p": 0.9, "top_k": 20}, 3) == Sampling(0.7, 0.9, 20, 3)
    assert sampling_of({"do_sample": True}, 3) == Sampling(1.0, seed=3)
    with pytest.raises(RpamError, match="generation_kwargs set 'num_beams', which engines don't know"):
        sampling_of({"num_beams": 4}, 0)


def test_gguf_and_folder_have_the_same_texts(engine: LlamaCppEngine, folder: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": " It is"},
    ]
    ours, theirs = texts_of(engine), texts_of(engine, folder)
    assert ours.chat(turns[:2], True) == theirs.chat(turns[:2], True)
    assert ours.chat(turns, False) == theirs.chat(turns, False)
    assert ours.chat(turns, False).endswith("<|im_start|>assistant\n It is")
    assert ours.encode("a <think> b<|im_end|>") == theirs.encode("a <think> b<|im_end|>")
    assert (ours.begin, ours.end, ours.template) == (theirs.begin, theirs.end, theirs.template)
    with pytest.raises(RpamError, match="carries no chat template; evaluate it with chat=False"):
        replace(ours, template=None).chat(turns, True)


def test_the_token_that_begins_texts_stands_there_once(engine: LlamaCppEngine) -> None:
    model = EngineLM(engine, replace(texts_of(engine), begin=474))
    plain = list(engine.tokenize("1 + 1"))
    assert model.tok_encode("1 + 1") == [474, *plain]
    assert model.tok_encode("<|im_start|>1 + 1") == [474, *plain]
    assert model.tok_encode("1 + 1", add_special_tokens=False) == plain
    assert model.prefix_token_id == 474


def test_other_engines_generate_and_refuse_to_score(engine: LlamaCppEngine, folder: Path, tasks: Path) -> None:
    with TransformersEngine(folder, 32, batch=4, device="cpu") as hf:
        assert run_own(hf, ["says"], include=tasks)["results"]["says"]["exact_match,none"] == 1.0
        with pytest.raises(RpamError, match="only a GGUF file can score given text"):
            run_own(hf, ["chooses"], include=tasks)
    car = CarEngine(Way(engine), Way(engine), Gate(1.1, 0.1, 2.0, 0.5, 0.5), short_tokens=1)
    assert texts_of(car).model == str(engine.path)
    assert len(run_own(car, ["says"], limit=1, include=tasks)["samples"]["says"]) == 1
    silent: Any = SimpleNamespace(name="silent")
    with pytest.raises(RpamError, match="silent: tells no tokenizer, which the harness needs"):
        texts_of(silent)


def test_an_unknown_task_is_named(engine: LlamaCppEngine, tasks: Path) -> None:
    with pytest.raises(RpamError, match="task 'sings': lm-evaluation-harness has no such task"):
        run_own(engine, ["says", "sings"], include=tasks)
