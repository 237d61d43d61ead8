"""The parents that our recipes name, shrunk: their real configs with fewer and narrower layers.

Kept are architecture, heads, rope, norms, tied or separate head, special tokens under their ids and in their
order, and what the chat template makes of one question. Shrunk are hidden size, head size, MLP, layers and,
without the real vocabulary, the vocabulary. Weights are random, the two parents of a pair slightly different;
only the last MLP is written by hand: Long answers every question with `LONG_TEXT`, Short with `SHORT_TEXT`.
So questions whose gold answer is one of the two get both labels, which random models could not give.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rpam_lite.checkpoint.prefill import without_prefill
from tests.export.real_vocabulary import R1_TOKENS, write_tokenizer

LONG_GOLD, SHORT_GOLD = "7", "3"
LONG_TEXT, SHORT_TEXT = f"<think>hm</think>\\boxed{{{LONG_GOLD}}}", f"\\boxed{{{SHORT_GOLD}}}"
LAYERS, HEAD_DIM, INTERMEDIATE, SMALL_ROWS = 2, 8, 64, 544

_IM = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
_IM_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_LLAMA_TURN = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>'"
TEMPLATES = {
    "r1": "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
    "qwen": _IM + _IM_END,
    "qwen-math": "{{ '<|im_start|>system\\nPlease reason step by step.<|im_end|>\\n' }}" + _IM + _IM_END,
    "qwen-thinking": _IM + _IM_END.replace("assistant\\n'", "assistant\\n<think>\\n'"),
    "llama": "{{ bos_token }}{% for m in messages %}{{ " + _LLAMA_TURN + " }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}

QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
QWEN_TOKENS += ["<|box_start|>", "<|box_end|>"]
R1_QWEN_TOKENS = list(R1_TOKENS.values())
QWEN3_TOKENS = [*QWEN_TOKENS, "<think>", "</think>"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_TOKENS += [f"<|reserved_special_token_{n}|>" for n in range(3, 7)]
R1_LLAMA_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", *LLAMA_TOKENS[2:5]]
R1_LLAMA_TOKENS += ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
# Under the ids that Llama 3.1 reserves.
R1_LLAMA_REPLACED = {
    128000: "<｜begin▁of▁sentence｜>",
    128001: "<｜end▁of▁sentence｜>",
    128011: "<｜User｜>",
    128012: "<｜Assistant｜>",
    128013: "<think>",
    128014: "</think>",
}
# Qwen3 has them behind the tokens of Qwen2.5.
QWEN3_REPLACED = {151667: "<think>", 151668: "</think>"}
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _config(kind: str, layers: int, hidden: int, mlp: int, heads: int, kv: int, theta: float, **more: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": theta}
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rope_parameters": rope,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        **more,
    }


@dataclass(frozen=True)
class Model:
    """What is real of one model of the hub."""

    config: dict[str, Any]
    template: str
    tokens: list[str]
    bos: str
    eos: str
    vocabulary: str = "ggml-vocab-qwen2.gguf"
    replaced: dict[int, str] = field(default_factory=dict)


_R1, _LLAMA = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "ggml-vocab-llama-bpe.gguf"
_R1_CONTEXT, _MATH_CONTEXT = {"max_position_embeddings": 131072}, {"max_position_embeddings": 4096}
_QWEN_1B = ("qwen2", 28, 1536, 8960, 12, 2, 10000.0)
_QWEN_7B = ("qwen2", 28, 3584, 18944, 28, 4, 10000.0)
_QWEN3_4B = ("qwen3", 36, 2560, 9728, 32, 8, 5000000.0)
_SHORT_HEAD = {"tie_word_embeddings": True}
_LLAMA_8B: dict[str, Any] = _config("llama", 32, 4096, 14336, 32, 8, 0.0) | {
    "rope_parameters": LLAMA31_ROPE,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    **_R1_CONTEXT,
}


def _qwen3(shape: tuple[Any, ...], template: str, eos: str, context: int) -> Model:
    config = _config(*shape, head_dim=128, max_position_embeddings=context, tie_word_embeddings=True)
    return Model(config, template, QWEN3_TOKENS, "", eos, replaced=QWEN3_REPLACED)


def _qwen3_pair(name: str, *shape: Any) -> dict[str, Model]:
    whole = ("qwen3", 28, *shape, 16, 8, 1000000.0)
    return {
        f"Qwen/{name}": _qwen3(whole, "qwen", "<|im_end|>", 40960),
        f"Qwen/{name}-Base": _qwen3(whole, "qwen", "<|endoftext|>", 32768),
    }


def _r1_qwen(shape: tuple[Any, ...], rows: int) -> Model:
    config = _config(*shape, **_R1_CONTEXT, tie_word_embeddings=False) | {"vocab_size": rows}
    return Model(config, "r1", R1_QWEN_TOKENS, *_R1, replaced=R1_TOKENS)


def _qwen_math(shape: tuple[Any, ...], rows: int, tied: bool) -> Model:
    config = _config(*shape, **_MATH_CONTEXT, tie_word_embeddings=tied) | {"vocab_size": rows}
    return Model(config, "qwen-math", QWEN_TOKENS, "", "<|endoftext|>")


MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _r1_qwen(_QWEN_1B, 151936),
    "Qwen/Qwen2.5-Math-1.5B": _qwen_math(_QWEN_1B, 151936, tied=True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _r1_qwen(_QWEN_7B, 152064),
    "Qwen/Qwen2.5-Math-7B": _qwen_math(_QWEN_7B, 152064, tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": Model(
        _LLAMA_8B, "r1", R1_LLAMA_TOKENS, *_R1, vocabulary=_LLAMA, replaced=R1_LLAMA_REPLACED
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Model(
        _LLAMA_8B, "llama", LLAMA_TOKENS, "<|begin_of_text|>", "<|eot_id|>", vocabulary=_LLAMA
    ),
    "Qwen/Qwen3-4B-Thinking-2507": _qwen3(_QWEN3_4B, "qwen-thinking", "<|im_end|>", 262144),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(_QWEN3_4B, "qwen", "<|im_end|>", 262144),
    **_qwen3_pair("Qwen3-0.6B", 1024, 3072),
    **_qwen3_pair("Qwen3-1.7B", 2048, 6144),
}


def write_pair(folder: Path, long: str, short: str, tokenizer: Tokenizer, vocabularies: Path | None) -> dict[str, Path]:
    """Both parents of a recipe, shrunk; folders by hub id.

    Args:
        folder: Where they go.
        long: Hub id of the Long parent, whose template asks the questions.
        short: Of the Short parent.
        tokenizer: Stands for the real vocabulary.
        vocabularies: Folder with llama.cpp's vocabulary files, to take the real one.
    """
    folders = {name: folder / name for name in (long, short)}
    for name, place in folders.items():
        place.mkdir(parents=True)
        _write_vocabulary(place, MODELS[name], tokenizer, vocabularies)
    asks = Tokenizer.from_file(str(folders[long] / "tokenizer.json"))
    model = MODELS[long]
    for seed, (name, text) in enumerate(((long, LONG_TEXT), (short, SHORT_TEXT)), 1):
        first = asks.encode(_prompt_end(model.template), add_special_tokens=False).ids[-1]
        told = asks.encode(text, add_special_tokens=False).ids
        chain = [first, *told, asks.token_to_id(model.eos)]
        assert len(set(chain)) == len(chain), f"{name}: a token follows two others in {text!r}"
        own = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        rows = MODELS[name].config["vocab_size"] if vocabularies else SMALL_ROWS
        config = shrunk(MODELS[name], rows, own)
        write_model(folders[name], config, chain, seed)
    return folders


def shrunk(model: Model, rows: int, tokenizer: Tokenizer) -> Any:
    """The config of the shrunken model."""
    heads = model.config["num_attention_heads"]
    config = model.config | {
        "num_hidden_layers": LAYERS,
        "hidden_size": heads * HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": rows,
        "bos_token_id": tokenizer.token_to_id(model.bos) if model.bos else None,
        "eos_token_id": tokenizer.token_to_id(model.eos),
        "pad_token_id": tokenizer.token_to_id(model.eos),
        **({"head_dim": HEAD_DIM} if "head_dim" in model.config else {}),
    }
    return CONFIG_MAPPING[config.pop("model_type")](**config)


def write_model(folder: Path, config: Any, chain: list[int], seed: int) -> None:
    """Random weights; the last MLP makes each token of the chain follow the one before it."""
    torch.manual_seed(0)  # the base that both were tuned from
    model = AutoModelForCausalLM.from_config(config)
    rows = torch.randn(config.vocab_size, config.hidden_size)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
        model.get_output_embeddings().weight.copy_(rows)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))
        mlp = model.get_decoder().layers[-1].mlp
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
            weight.mul_(0.01)
        for neuron, (here, following) in enumerate(pairwise(chain)):
            mlp.gate_proj.weight[neuron] = 8 * rows[here] / config.hidden_size
            mlp.up_proj.weight[neuron] = rows[here] / config.hidden_size
            mlp.down_proj.weight[:, neuron] = (rows[following] - rows[here]) / 8
    model.to(torch.bfloat16).save_pretrained(folder)


def _prompt_end(template: str) -> str:
    """Last string of the template, without an open think block: what an answer follows."""
    neutral = without_prefill(TEMPLATES[template], Path(template))
    return neutral.rpartition("{{ '")[2].partition("'")[0].replace("\\n", "\n")


def _write_vocabulary(folder: Path, model: Model, tokenizer: Tokenizer, vocabularies: Path | None) -> None:
    if vocabularies is not None:
        write_tokenizer(folder, vocabularies / model.vocabulary, model.replaced)
    else:
        raw = json.loads(tokenizer.to_str())
        plain = [added for added in raw["added_tokens"] if added["content"] not in QWEN3_TOKENS]
        assert not plain
        first = min(added["id"] for added in raw["added_tokens"])
        shape = raw["added_tokens"][0]
        raw["added_tokens"] = [
            shape | {"id": first + n, "content": text, "special": "think>" not in text}
            for n, text in enumerate(model.tokens)
        ]
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": model.bos or None,
        "eos_token": model.eos,
        "pad_token": model.eos,
        "chat_template": TEMPLATES[model.template],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
