"""What the tests of engines share: one random model, as a folder and as a GGUF file, and a server that stands in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.gguf.write import write_gguf
from quant.engines import http_client
from quant.engines.llama_cpp import LlamaCppEngine
from rpam_lite.checkpoint.source import CheckpointSource
from tests.conftest import make_checkpoint
from tests.quant.http_server import StandIn


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random checkpoint folder, `hf`, wide enough for every quantization; all tests read this one."""
    path = tmp_path_factory.mktemp("model") / "hf"
    # Large weights: the likeliest token stands out, and an end token turns up now and then.
    return make_checkpoint(path, 5, tokenizer, hidden_size=256, intermediate_size=256, initializer_range=0.2)


@pytest.fixture(scope="session")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as a GGUF file in fp32, `model.gguf`."""
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    source = CheckpointSource(folder)
    write_gguf(source, source.config, folder, file, "F32", "test")
    return file


@pytest.fixture
def engine(gguf: Path) -> Iterator[LlamaCppEngine]:
    """The GGUF file in llama.cpp, with nothing read before."""
    with LlamaCppEngine(gguf, 4, threads=1) as loaded:
        yield loaded


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP engine asks again soon, and takes no key from the environment."""
    monkeypatch.setattr(http_client, "FIRST_WAIT_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A stand-in for an OpenAI-compatible server."""
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()
