"""The label stage: which engine samples, what is kept, and what makes it sample again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.engines import Completion, Request
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.labelling import sample_file
from rpam_lite.pipeline.opening import Silent
from rpam_lite.pipeline.stage import Run
from rpam_lite.pipeline.stages import run_label
from rpam_lite.pipeline.traces import pattern_rows
from rpam_lite.pipeline.trip import STAGES, run_one
from rpam_lite.preflight import check
from rpam_lite.recipe import load_recipe

QUESTIONS = "".join(f'{{"question": "What is 1 + {n}?", "answer": "{n + 1}", "level": 1}}\n' for n in range(3))


def run_of(pair: Path, **label: Any) -> Run:
    """A run on the pair of random models, whose answers are short and never right."""
    recipe = {
        "version": 1,
        "name": "mine",
        "parents": {"long": "long", "short": "short"},
        "label": {"questions": "c.jsonl", "samples": 2, "max_tokens": 6, "rule": "ada-r1"} | label,
        "eval": {"questions": "e.jsonl"},
    }
    (pair / "c.jsonl").write_text(QUESTIONS, encoding="utf-8")
    (pair / "e.jsonl").write_text('{"question": "What is 9 - 9?", "answer": "0"}\n', encoding="utf-8")
    (pair / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return Run(load_recipe(pair / "mine.yaml"), pair / "runs" / "mine", Silent(), lambda text: None)


def patterns(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.of("label") / "patterns.jsonl").read_text().splitlines()]


def asked_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that llama.cpp is asked from now on."""
    asked: list[str] = []
    generate = LlamaCppEngine.generate

    def listen(self: LlamaCppEngine, requests: Sequence[Request]) -> Iterator[Completion]:
        asked.extend(r.key for r in requests)
        yield from generate(self, requests)

    monkeypatch.setattr(LlamaCppEngine, "generate", listen)
    return asked


def test_a_damaged_line_of_the_labels_is_no_question_less(pair: Path) -> None:
    run_one("label", run := run_of(pair))
    file = run.of("label") / "patterns.jsonl"
    assert pattern_rows(run) == patterns(run)
    whole = file.read_bytes()
    for damaged in (whole.replace(b"{", b"[", 1), whole[:-9]):
        file.write_bytes(damaged)
        with pytest.raises(RpamError, match=r"patterns\.jsonl: holds lines that are no JSON objects; run `rpam label`"):
            pattern_rows(run)
    file.write_bytes(whole.replace(b"What", b"Wh\xff", 1))
    with pytest.raises(RpamError, match=r"patterns\.jsonl: is not UTF-8 text"):
        pattern_rows(run)


def test_another_rule_or_price_samples_nothing_and_more_answers_only_the_new_ones(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the stage itself, which throws `label/` away when its settings change."""
    asked = asked_of(monkeypatch)
    run_one("label", run_of(pair))
    assert sorted(asked) == sorted([f"{q}/{i}" for q in (1, 2, 3) for i in (0, 1)] * 2)
    assert [row["label"] for row in patterns(run_of(pair))] == ["short"] * 3
    asked.clear()
    for changes in ({"rule": "strict"}, {"rule": "cost", "price": 3.0}, {"rule": "cost", "price": 0.5}):
        run_one("label", run := run_of(pair, **changes))
        assert {row["rule"] for row in patterns(run)} == {changes["rule"]}
        assert [row["label"] for row in patterns(run)] == [None] * 3
    run_one("label", run_of(pair, adaptive=True))
    assert asked == []
    run_one("label", run_of(pair, samples=3))
    assert sorted(asked) == ["1/2", "1/2", "2/2", "2/2", "3/2", "3/2"]


def test_another_grader_samples_nothing_and_another_instruction_asks_anew(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run_one("label", replace(run_of(pair), say=said.append))
    assert "long: 6 of 6 samples needed, 6 drawn now; 0 right, 6 wrong (6 truncated)" in said
    asked = asked_of(monkeypatch)
    kept = sample_file(run_of(pair), "long")
    samples = [json.loads(line) | {"finish_reason": "stop", "text": "2"} for line in kept.read_text().splitlines()]
    kept.write_text("".join(json.dumps(row) + "\n" for row in samples))
    run_one("label", run := run_of(pair, grader="exact"))
    assert asked == []
    assert [row["correct_long"] for row in patterns(run)] == [0, 2, 0]  # 1 + 1, though not in a box
    run_one("label", run := run_of(pair, instruction="Box it."))
    assert len(asked) == 12
    assert patterns(run)[0]["question"] == "What is 1 + 0?\nBox it."


def test_samples_depend_on_what_draws_them_and_on_nothing_else(pair: Path, edit_json: Callable[..., None]) -> None:
    before = {name: sample_file(run_of(pair), name) for name in ("long", "short")}
    for same in ({"rule": "cost", "price": 2.0}, {"samples": 9}, {"adaptive": True}, {"parallel": 3}, {"type": "F16"}):
        assert sample_file(run_of(pair, **same), "long") == before["long"]
    others = [{"temperature": 0.7}, {"top_p": 0.5}, {"top_k": 3}, {"max_tokens": 7}, {"type": "Q8_0"}]
    others += [
        {"engine": "bf16"},
        {"engine": "nf4"},
        {"engine": "http", "urls": {"long": "http://a", "short": "http://b"}},
    ]
    files = {sample_file(run_of(pair, **other), "long") for other in others}
    assert len(files | {before["long"]}) == len(others) + 1
    edit_json(pair / "short" / "config.json", rms_norm_eps=1e-5)
    assert sample_file(run_of(pair), "short") != before["short"]
    assert sample_file(run_of(pair), "long") == before["long"]


@pytest.mark.parametrize("settings", [{"type": "Q8_0"}, {"engine": "bf16"}])
def test_other_engines_sample_as_well_and_leave_the_files_that_are_measured(
    pair: Path, settings: dict[str, Any]
) -> None:
    run = run_of(pair, **settings)
    run_label(run)
    assert sorted(f.name for f in run.of("label").iterdir()) == ["long-f16.gguf", "patterns.jsonl", "short-f16.gguf"]
    for name in ("long", "short"):
        rows = [json.loads(line) for line in sample_file(run, name).read_text().splitlines()]
        assert [row["key"] for row in rows] == ["1/0", "1/1", "2/0", "2/1", "3/0", "3/1"]
        assert all(1 <= row["tokens"] <= 6 for row in rows)


def test_servers_are_asked_each_for_its_parent_with_the_donors_token_ids(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant.engines import http

    asked: list[tuple[str, tuple[int, ...]]] = []

    class Served:
        name = identity = "served"

        def __init__(self, url: str, tokenizer: Path, parallel: int) -> None:
            assert tokenizer == pair / "long"
            self.url, self.parallel = url, parallel

        def __enter__(self) -> Served:
            return self

        def __exit__(self, *rest: object) -> None:
            asked.append((f"closed {self.url}", ()))

        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            for request in requests:
                asked.append((self.url, request.prompt))
                yield Completion(request.key, (), (b"\\boxed{1}",), "stop", 5)

    monkeypatch.setattr(http, "HttpEngine", Served)
    run = run_of(pair, engine="http", urls={"long": "http://long:1", "short": "http://short:1"})
    run_label(run)
    assert {url for url, _ in asked} == {f"{how}http://{p}:1" for how in ("", "closed ") for p in ("long", "short")}
    rows = patterns(run)
    assert {prompt for url, prompt in asked if prompt} == {tuple(row["prompt_ids"]) for row in rows}
    # "What is 1 + 0?" was answered right; the server told no token ids, the donor's tokenizer does.
    assert rows[0]["correct_long"] == rows[0]["correct_short"] == 2
    with LlamaCppEngine(run.of("label") / "long-f16.gguf") as engine:
        assert rows[0]["response_short"] == list(engine.tokenize("\\boxed{1}"))


@pytest.mark.parametrize("engine", ["bf16", "http"])
def test_an_engine_that_takes_a_parent_as_it_is_needs_the_donors_token_ids(pair: Path, engine: str) -> None:
    file = pair / "short" / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["added_tokens"][-1]["content"] = "<|box_end|>"
    file.write_text(json.dumps(raw), encoding="utf-8")
    urls = {"urls": {"long": "http://a", "short": "http://b"}} if engine == "http" else {}
    with pytest.raises(RpamError, match=r"short: has other token ids than the donor.*set `label.engine: gguf`"):
        run_label(run_of(pair, engine=engine, **urls))
    run = run_of(pair, engine=engine, **urls)
    assert [f.code for f in check(run.recipe, run.folder) if f.level == "ERROR"] == ["engine"]


def test_an_adapter_is_refused_by_transformers(pair: Path) -> None:
    (pair / "short" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}', encoding="utf-8")
    run = run_of(pair, engine="nf4")
    base = run.recipe.model_copy(update={"parents": run.recipe.parents.model_copy(update={"base": pair / "long"})})
    with pytest.raises(RpamError, match="adapter"):
        run_label(Run(base, run.folder, run.progress, run.say))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ({"price": 2.0}, "`price` is read under `rule: cost` alone"),
        ({"stop_probability": 0.1}, "`stop_probability` is read under `adaptive: true` alone"),
        ({"engine": "nf4", "type": "Q8_0"}, "`type` is read under `engine: gguf` alone"),
        ({"urls": {"long": "http://a", "short": "http://b"}}, "`urls` is read under `engine: http` alone"),
        ({"engine": "http"}, "`engine: http` needs `urls:"),
        ({"engine": "http", "urls": {"long": "a", "short": "http://b"}}, "`label.urls.long` is 'a'"),
        ({"engine": "int4"}, "`label.engine` is 'int4'"),
        ({"rule": "mine"}, "`label.rule` is 'mine'"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(pair: Path, label: dict[str, Any], says: str) -> None:
    with pytest.raises(RpamError) as caught:
        run_of(pair, **label)
    assert says in str(caught.value)


def test_the_stage_reruns_for_every_key_of_its_section(pair: Path) -> None:
    settings = STAGES["label"].settings
    before = json.dumps(settings(run_of(pair).recipe), default=str)
    for changes in ({"rule": "strict"}, {"adaptive": True}, {"engine": "bf16"}, {"type": "Q8_0"}):
        assert json.dumps(settings(run_of(pair, **changes).recipe), default=str) != before
