"""The transformers engine: what a request gets does not depend on what runs beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant.engines import Completion, Engine, Request, Sampling
from quant.engines.chat import ChatTokenizer, end_token_ids, token_pieces
from quant.engines.sampling import draw
from quant.engines.transformers import TransformersEngine
from rpam_lite.errors import RpamError


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, 32, batch=3, device="cpu")


def requests(sampling: Sampling = Sampling(), count: int = 5) -> list[Request]:
    return [
        Request(str(i), tuple(range(10, 13 + 3 * i)), 5 + 2 * (i % 3), replace(sampling, seed=sampling.seed + i))
        for i in range(count)
    ]


def complete(engine: Engine, asked: list[Request]) -> dict[str, Completion]:
    return {c.key: replace(c, seconds=0.0) for c in engine.generate(asked)}


def test_greedy_equals_transformers_own_loop_one_at_a_time(folder: Path, engine: TransformersEngine) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = complete(engine, requests())
    for request in requests():
        prompt = torch.tensor([request.prompt])
        whole = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.max_tokens, do_sample=False
        )
        expected = whole[0, len(request.prompt) :].tolist()
        completion = found[request.key]
        ended = expected[-1] in end_token_ids(folder)
        assert list(completion.token_ids) == (expected[:-1] if ended else expected)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.generated == len(expected)


def test_an_end_token_ends_an_answer(folder: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    """A greedy token declared an end token: every answer must stop before its first one."""
    free = complete(engine, requests())
    end = free["2"].token_ids[3]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 0]}), encoding="utf-8")
    with TransformersEngine(tmp_path, 32, batch=3, device="cpu") as ending:
        found = complete(ending, requests())
    for key, completion in free.items():
        before = completion.token_ids.index(end) if end in completion.token_ids else None
        assert found[key].token_ids == completion.token_ids[:before]
        assert found[key].generated == len(found[key].token_ids) + (before is not None)
        assert found[key].finish_reason == ("length" if before is None else "stop")
    assert found["2"].finish_reason == "stop"


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0.95, 0, 3), Sampling(2.0, 0.9, 40, 3)])
def test_a_sampled_answer_does_not_depend_on_its_batch(engine: TransformersEngine, sampling: Sampling) -> None:
    together = complete(engine, requests(sampling))
    assert together == {k: v for r in requests(sampling) for k, v in complete(engine, [r]).items()}
    mixed = complete(engine, [requests(sampling)[0], replace(requests()[2], key="greedy")])
    assert mixed["0"] == together["0"]
    assert replace(mixed["greedy"], key="2") == complete(engine, requests()[2:3])["2"]
    assert together != complete(engine, requests(replace(sampling, seed=99)))


def test_log_probabilities_are_of_the_raw_logits(folder: Path, engine: TransformersEngine) -> None:
    asked = [replace(r, logprobs=True) for r in requests(Sampling(1.7, 0.9, 20, 1), 3)]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for request, completion in zip(asked, [complete(engine, asked)[r.key] for r in asked], strict=True):
        whole = torch.tensor([request.prompt + completion.token_ids])
        with torch.no_grad():
            logprobs = reference(whole).logits[0].log_softmax(-1)
        expected = [logprobs[len(request.prompt) + i - 1, t].item() for i, t in enumerate(completion.token_ids)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert complete(engine, requests())["0"].logprobs is None


def test_draw_follows_top_k_top_p_and_temperature() -> None:
    shares = torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05]])
    uniforms = [i / 1000 for i in range(1000)]

    def counts(sampling: Sampling) -> list[int]:
        drawn = draw(shares.log().expand(1000, -1), [sampling] * 1000, uniforms)
        return torch.bincount(drawn, minlength=5).tolist()

    assert counts(Sampling(1.0)) == pytest.approx([100, 500, 50, 300, 50], abs=1)
    assert counts(Sampling(1.0, top_k=2)) == pytest.approx([0, 625, 0, 375, 0], abs=1)
    # Top-p counts what top-k left: 0.5 / 0.8 reaches 0.6 alone.
    assert counts(Sampling(1.0, 0.6, 2)) == [0, 1000, 0, 0, 0]
    assert counts(Sampling(1.0, 0.6)) == pytest.approx([0, 625, 0, 375, 0], abs=1)
    # Temperature comes after top-p: 0.5^2 to 0.3^2.
    assert counts(Sampling(0.5, 0.6)) == pytest.approx([0, 735, 0, 265, 0], abs=1)
    assert counts(Sampling(0.0, 0.1, 1)) == [0, 1000, 0, 0, 0]
    assert counts(Sampling(1.0, 1e-9)) == [0, 1000, 0, 0, 0]
    last = draw(shares.log(), [Sampling(1.0)], [1 - 1e-12])
    assert last.item() in (2, 4)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_fewer_bits_answer_nearly_alike(folder: Path, engine: TransformersEngine, bits: int) -> None:
    if bits < 16:
        pytest.importorskip("bitsandbytes")
    asked = [replace(r, logprobs=True) for r in requests(count=3)]
    with TransformersEngine(folder, bits, batch=3, device="cpu") as low:
        found = complete(low, asked)
        linear = type(low._model.model.layers[0].mlp.up_proj).__name__
        assert low.identity != engine.identity
    assert linear == {4: "Linear4bit", 8: "Linear8bitLt", 16: "Linear"}[bits]
    whole = complete(engine, asked)
    first = [(found[k].logprobs or ())[0] - (whole[k].logprobs or ())[0] for k in found]
    assert first != [0.0] * len(first)
    if bits > 4:  # at 4 bits a random model of this size keeps little
        assert max(abs(d) for d in first) < 0.5
        assert any(found[k].token_ids[0] == whole[k].token_ids[0] for k in found)


def test_the_prompt_and_the_text_are_transformers_own(folder: Path, engine: TransformersEngine) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": "What is 1 + 1? Köln, 東京, 🦙"}]
    prompt = engine.chat_prompt(turn[0]["content"])
    assert list(prompt) == reference.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    pieces = token_pieces(folder)
    text = b"".join(pieces[i] for i in prompt).decode()
    assert text == reference.decode(prompt)
    assert turn[0]["content"] in text
    assert len(pieces[reference("🦙").input_ids[0]]) < 4  # one token is part of a character


def test_a_template_that_opens_the_think_block_is_known(
    engine: TransformersEngine, pair: Path, edit_json: Callable[..., None]
) -> None:
    assert not engine.opens_think
    config = pair / "short" / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8"))["chat_template"]
    edit_json(config, chat_template=template + "{{- '<think>\\n' -}}")
    assert ChatTokenizer(pair / "short").opens_think


def test_sentencepiece_tokens_have_bytes_too(tmp_path: Path) -> None:
    tokenizer = {
        "model": {"vocab": {"▁a": 0, "<0xE6>": 1, "b": 2}},
        "added_tokens": [{"id": 3, "content": "<s>"}],
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert token_pieces(tmp_path) == {0: b" a", 1: b"\xe6", 2: b"b", 3: b"<s>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": {"type": "WordPiece"}}))
    with pytest.raises(RpamError, match="WordPiece"):
        token_pieces(tmp_path)


def test_another_merge_is_another_identity(pair: Path) -> None:
    def identity(name: str) -> str:
        with TransformersEngine(pair / name, device="cpu") as engine:
            return engine.identity

    assert identity("long") == identity("long") != identity("short")


def test_what_does_not_fit_is_named(engine: TransformersEngine) -> None:
    for request, message in [
        (Request("a", tuple(range(10, 20)), 510), "10 prompt tokens and max_tokens 510 are 520.*512"),
        (Request("b", (), 5, question="1 + 1?"), "'b': has no prompt tokens"),
        (Request("c", (1, 700), 5), "token id 700 is none of the 512"),
        (Request("d", (1,), 0), "max_tokens is 0"),
    ]:
        with pytest.raises(RpamError, match=message):
            list(engine.generate([request]))
    assert complete(engine, []) == {}


def test_bad_folders_and_devices_are_named(pair: Path, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    with pytest.raises(RpamError, match="none: no such checkpoint folder"):
        TransformersEngine(tmp_path / "none")
    with pytest.raises(RpamError, match="device 'gpu'"):
        TransformersEngine(pair / "long", device="gpu")
    with pytest.raises(RpamError, match="device 'cuda:99': "):
        TransformersEngine(pair / "long", device="cuda:99")
    with pytest.raises(RpamError, match="batch=0"):
        TransformersEngine(pair / "long", batch=0)
    with pytest.raises(RpamError, match="bits=3"):
        TransformersEngine(pair / "long", bits=3)
    edit_json(pair / "long" / "config.json", model_type="nonesuch")
    with pytest.raises(RpamError, match=r"long: transformers can't load it.*nonesuch"):
        TransformersEngine(pair / "long", device="cpu")
    edit_json(pair / "short" / "tokenizer_config.json", chat_template=None)
    with (
        TransformersEngine(pair / "short", device="cpu") as engine,
        pytest.raises(RpamError, match="short: carries no chat template"),
    ):
        engine.chat_prompt("1 + 1?")
    edit_json(pair / "short" / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(RpamError, match=r"short: model\.layers\.2.* is in none of its files"):
        TransformersEngine(pair / "short", device="cpu")
