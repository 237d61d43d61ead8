"""A Hugging Face folder through transformers: fp32, bf16, or bitsandbytes' int8 and nf4.

transformers' own `generate` draws a whole batch from one random stream, so that what a request gets
depends on what runs beside it. Here each row has its own stream, and rows that have ended leave the batch.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from quant.engines.base import Completion, Request
from quant.engines.chat import ChatTokenizer
from quant.engines.sampling import draw
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.device import check_low_bits, choose_device, release_memory
from rpam_lite.errors import RpamError, one_line
from rpam_lite.quiet import without_loading_bars

KINDS = {4: "nf4", 8: "int8", 16: "bf16", 32: "fp32"}
_HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class _Row:
    """One running request: its random stream, and what it has generated."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stream = random.Random(request.sampling.seed)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.ended = False


class TransformersEngine:
    """Runs one Hugging Face folder on the GPU or the CPU.

    A request's tokens do not depend on what runs beside it, but for rounding (and at 8 bits for the columns
    that bitsandbytes takes out of a batch as outliers).

    Args:
        folder: Checkpoint: config, safetensors, tokenizer.
        bits: 32 (fp32), 16 (bf16), 8 (bitsandbytes int8) or 4 (bitsandbytes nf4, bf16 arithmetic).
        batch: Requests that run side by side.
        device: "auto" is the GPU where there is one; or "cpu", "cuda", "cuda:1", "mps".
        name: What tables call it; by default the folder's name and the kind of its weights.

    Raises:
        RpamError: The folder is missing or damaged, the device is not there, or transformers can't load it.
    """

    def __init__(
        self, folder: Path, bits: int = 16, batch: int = 8, device: str = "auto", name: str | None = None
    ) -> None:
        if bits not in KINDS:
            raise RpamError(f"bits={bits}: weights have 4, 8, 16 or 32 bits; choose one of these.")
        if batch < 1:
            raise RpamError(f"batch={batch}: at least one request must run at a time; give 1 or more.")
        if not folder.is_dir():
            raise RpamError(f"{folder}: no such checkpoint folder; name one with config.json and safetensors files.")
        self.folder, self.bits, self.batch = folder, bits, batch
        self.name = name or f"{folder.name}-{KINDS[bits]}"
        self.device = choose_device(device, "device")
        if bits < 16:
            check_low_bits(self.device, f"bits={bits}", "choose 16 bits, or the cpu")
        CheckpointSource(folder)  # says what is missing or damaged more plainly than transformers does
        self._tokenizer = ChatTokenizer(folder)
        self._model: Any = _load(folder, bits, self.device)
        config = self._model.config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self._room: int | None = getattr(config, "max_position_embeddings", None)

    def close(self) -> None:
        """Free the model; the engine can't be used after this."""
        self._model = None
        release_memory(self.device)

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @cached_property
    def identity(self) -> str:
        """Hash of the folder's content and of the kind of weights."""
        digest = hashlib.sha256(KINDS[self.bits].encode())
        # Headers and sizes would not do: two merges of one pair differ in nothing but the weights.
        for file in sorted([*self.folder.glob("*.safetensors"), *(self.folder / name for name in _HASHED)]):
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(f"\n{file.name} ".encode() + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def opens_think(self) -> bool:
        """Whether its chat template ends in an open think block, so that answers only close it."""
        return self._tokenizer.opens_think

    def chat_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of one user turn in the folder's own chat template, ready for an answer.

        Raises:
            RpamError: The folder carries no chat template, or the template fails.
        """
        return self._tokenizer.prompt(question)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete all requests, yielding each as it ends.

        Raises:
            RpamError: A request does not fit the model, the memory is exhausted, or the model's logits are no numbers.
        """
        for request in requests:
            self._check(request)
        # Prompts of like length waste little padding, and long ones tend to long answers.
        waiting = sorted(requests, key=lambda r: -len(r.prompt))
        for start in range(0, len(waiting), self.batch):
            yield from self._complete(waiting[start : start + self.batch])

    def _check(self, request: Request) -> None:
        needed = len(request.prompt) + request.max_tokens
        if not request.prompt:
            raise RpamError(f"request {request.key!r}: has no prompt tokens; make them with chat_prompt(question).")
        if request.max_tokens < 1:
            raise RpamError(f"request {request.key!r}: max_tokens is {request.max_tokens}; ask for at least 1.")
        if self._room is not None and needed > self._room:
            raise RpamError(
                f"request {request.key!r}: {len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} are "
                f"{needed}, more than max_position_embeddings {self._room} of {self.folder}; lower max_tokens."
            )
        if wrong := next((t for t in request.prompt if not 0 <= t < self._vocabulary), None):
            raise RpamError(
                f"request {request.key!r}: token id {wrong} is none of the {self._vocabulary} of {self.folder}; "
                "make the prompt with this model's tokenizer."
            )

    def _complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Run one batch to its end."""
        started = time.perf_counter()
        rows = [_Row(request) for request in requests]
        tokens, mask = _left_padded([r.prompt for r in requests], self.device)
        cache = DynamicCache(config=self._model.config)
        while rows:
            logits = self._next_logits(tokens, mask, cache)
            drawn = draw(logits, [r.request.sampling for r in rows], [r.stream.random() for r in rows])
            logprobs = _logprobs(logits, drawn) if any(r.request.logprobs for r in rows) else [0.0] * len(rows)
            for row, token, logprob in zip(rows, drawn.tolist(), logprobs, strict=True):
                if not row.ended and (reason := self._advance(row, token, logprob)):
                    yield self._completion(row, reason, time.perf_counter() - started)
            running = [i for i, row in enumerate(rows) if not row.ended]
            # Leaving copies the cache of those who stay, so it must be worth several steps.
            if len(running) <= 0.75 * len(rows):
                rows = [rows[i] for i in running]
                kept = torch.tensor(running, dtype=torch.long, device=self.device)
                drawn, mask = drawn[kept], mask[kept]
                if rows:
                    cache.batch_select_indices(kept)
            tokens = drawn[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    @torch.inference_mode()
    def _next_logits(self, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """(rows, vocabulary) logits, fp32, of what follows `tokens`."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        try:
            output = self._model(
                tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
        except torch.OutOfMemoryError:
            raise RpamError(
                f"{self.folder}: {self.device} has no memory for {len(tokens)} requests of {mask.shape[1]} tokens; "
                f"lower `batch` (now {self.batch}).",
                code="E07",
            ) from None
        logits: torch.Tensor = output.logits[:, -1].float()
        if logits.isnan().any():
            raise RpamError(f"{self.folder}: its logits at {self.bits} bits are not numbers (NaN); try more bits.")
        return logits

    def _advance(self, row: _Row, token: int, logprob: float) -> str | None:
        """Take the row's next token; why that ends it, else None."""
        if token in self._tokenizer.end_ids:
            row.ended = True
            return "stop"
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        row.ended = len(row.token_ids) == row.request.max_tokens
        return "length" if row.ended else None

    def _completion(self, row: _Row, reason: str, seconds: float) -> Completion:
        return Completion(
            row.request.key,
            tuple(row.token_ids),
            tuple(self._tokenizer.pieces.get(t, b"") for t in row.token_ids),  # padding of the vocabulary has none
            "stop" if reason == "stop" else "length",
            len(row.token_ids) + (reason == "stop"),
            seconds,
            tuple(row.logprobs) if row.request.logprobs else None,
        )


def _load(folder: Path, bits: int, device: torch.device) -> Any:
    """The model on its device, every weight from the folder."""
    settings: dict[str, Any] = {"dtype": torch.float32 if bits == 32 else torch.bfloat16}
    if bits < 16:
        import bitsandbytes  # noqa: F401 (a missing package is told by name, before anything is read)

        settings["device_map"] = {"": str(device)}
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        # It says at every layer that int8 arithmetic rounds bf16 to fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        with without_loading_bars():
            model, told = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True, **settings
            )
        model = model.eval() if bits < 16 else model.eval().to(device)
    except torch.OutOfMemoryError:
        raise RpamError(
            f"{folder}: {device} has no memory for it at {bits} bits; choose fewer bits.", code="E07"
        ) from None
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RpamError(
            f"{folder}: transformers can't load it at {bits} bits on {device} ({one_line(error)})."
        ) from None
    if missing := sorted(told["missing_keys"]):
        raise RpamError(f"{folder}: {missing[0]} is in none of its files; download the checkpoint again.")
    return model


def _left_padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest) token ids and mask, the padding on the left: all rows go on in the same column."""
    longest = max(len(p) for p in prompts)
    tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return tokens, mask


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    chosen: list[float] = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
    return chosen
