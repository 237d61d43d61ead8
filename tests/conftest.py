"""Tiny synthetic checkpoints, made on the spot: no downloads, no GPU, nothing outside the project.

Run with `make test`, or `pytest` in the project's environment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from recipes.tiny.tokenizer import train_tokenizer, write_tokenizer_files

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The trip takes longest: begun last it would keep one of two processes waiting."""
    items.sort(key=lambda item: item.path.name != "test_trip.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Some tests set torch's threads; the next one starts with one again."""
    yield
    torch.set_num_threads(1)


def make_checkpoint(folder: Path, seed: int, tokenizer: Any, kind: str = "qwen2", **overrides: Any) -> Path:
    """A random model of two layers, saved as an ordinary Hugging Face folder in bf16."""
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings | overrides))
    with torch.no_grad():
        # Biases and norms start as constants; random ones make mistakes in them visible.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer_files(tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    make_checkpoint(folder / "long", 1, tokenizer)
    make_checkpoint(folder / "short", 2, tokenizer)
    return folder


@pytest.fixture
def pair(_pair: Path, tmp_path: Path) -> Path:
    """A folder with two random checkpoints, `long` and `short`, that a test may damage."""
    return Path(shutil.copytree(_pair, tmp_path / "pair"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change some keys of a JSON file."""

    def edit(path: Path, **changes: Any) -> None:
        value = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(value), encoding="utf-8")

    return edit


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, where RPAM_TEST_DATA names a folder with them."""
    folder = os.environ.get("RPAM_TEST_DATA")
    if folder is None or not (Path(folder) / "data").is_dir():
        pytest.skip("RPAM_TEST_DATA names no folder with real data sets")
    return Path(folder)
