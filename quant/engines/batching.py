"""Many sequences in one llama.cpp context: continuous batching over shared prompts.

Each step decodes one token of every running sequence; a slot that has ended is given the next request at once. What
a slot's cache holds of a new prompt is kept, and what another slot's holds is copied, so that samples of one question,
and questions that begin alike, are read once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from quant.engines.base import Request, Sampling

# A shorter common beginning is not worth a copy of the cache.
_WORTH_COPYING = 16


class Decoder:
    """One context, whose sequences each have a cache of their own.

    Args:
        context: llama.cpp's context with `parallel` sequences of `room` tokens.
        parallel: Sequences.
        room: Tokens of each.
        fail: Raises the error for a status of llama.cpp.
    """

    def __init__(self, context: Any, parallel: int, room: int, fail: Callable[[int], None]) -> None:
        self.context, self._fail = context, fail
        self._memory = llama_cpp.llama_get_memory(context)
        self._room = room
        self._batch = llama_cpp.llama_batch_init(parallel * room, 0, 1)
        self._held: list[list[int]] = [[] for _ in range(parallel)]

    def free(self) -> None:
        """Free the context."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self.context)

    def take(self, sequence: int, prompt: Sequence[int]) -> None:
        """Leave in a sequence's cache the longest beginning of `prompt` that any sequence holds.

        The prompt's last token is never among it: its logits are still to be computed.
        """
        lengths = [_common(held, prompt[:-1]) for held in self._held]
        best = max(range(len(lengths)), key=lambda i: (lengths[i], i == sequence))
        if lengths[best] < lengths[sequence] + _WORTH_COPYING:
            best = sequence
        if best != sequence:
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            llama_cpp.llama_memory_seq_cp(self._memory, best, sequence, -1, -1)
        self._held[sequence] = list(prompt[: lengths[best]])
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, lengths[best], -1)

    def held(self, sequence: int) -> int:
        """Tokens in a sequence's cache."""
        return len(self._held[sequence])

    def decode(self, tokens: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """One pass over new tokens, by sequence.

        Returns:
            Row of the logits that follow each sequence's last token.
        """
        # llama.cpp decodes sequences in one pass only if their numbers follow each other: an idle one
        # that decodes a token for nothing is far cheaper than a second pass. Prompts take passes anyway.
        steps = all(len(new) == 1 for new in tokens.values())
        idle = [i for i in range(min(tokens), max(tokens) + 1) if steps and i not in tokens]
        row, rows = 0, {}
        for sequence in sorted([*tokens, *idle]):
            if sequence in idle and self.held(sequence) == self._room:
                self._held[sequence].pop()
                llama_cpp.llama_memory_seq_rm(self._memory, sequence, self.held(sequence), -1)
            for offset, token in enumerate(tokens.get(sequence, (0,))):
                self._batch.token[row] = token
                self._batch.pos[row] = self.held(sequence) + offset
                self._batch.n_seq_id[row] = 1
                self._batch.seq_id[row][0] = sequence
                self._batch.logits[row] = sequence in tokens and offset == len(tokens[sequence]) - 1
                row += 1
            rows[sequence] = row - 1
        self._batch.n_tokens = row
        if (status := llama_cpp.llama_decode(self.context, self._batch)) != 0:
            self._fail(status)
        for sequence in idle:
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, self.held(sequence), -1)
        for sequence, new in tokens.items():
            self._held[sequence].extend(new)
        return {sequence: rows[sequence] for sequence in tokens}

    def logits(self, row: int, size: int) -> NDArray[np.float32]:
        """Logits of one row of the last pass, [vocabulary], valid until the next pass."""
        values = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(values, (size,))


class Slot:
    """One running request, and what it has generated."""

    def __init__(self, request: Request, sequence: int) -> None:
        self.request, self.sequence = request, sequence
        self.began = time.monotonic()
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []

    @cached_property
    def sampler(self) -> Any:
        """The request's sampler chain; it lives in llama.cpp until `free`."""
        return _sampler(self.request.sampling)

    def free(self) -> None:
        """Free the sampler."""
        llama_cpp.llama_sampler_free(self.sampler)


def run(
    decoder: Decoder, requests: Sequence[Request], parallel: int, advance: Callable[[Slot, int], bool]
) -> Iterator[Slot]:
    """Run all requests.

    Args:
        decoder: Decodes.
        requests: What to run.
        parallel: Sequences at a time.
        advance: Given a slot and the row of its logits, draws its next token; whether that ends it.

    Yields:
        Slots that have ended.
    """
    # Long prompts tend to long answers: started first, they leave no tail of lonely sequences. Equal ones
    # stand together, so that the first one's cache is still there for the others.
    waiting = deque(sorted(requests, key=lambda r: (-len(r.prompt), r.prompt)))
    slots: dict[int, Slot] = {}
    try:
        while waiting or slots:
            # A prompt costs a pass of its own, so let some slots gather before the next ones join.
            if waiting and (parallel - len(slots)) * 4 >= parallel:
                free = [i for i in range(parallel) if i not in slots]
                joining = [Slot(waiting.popleft(), i) for i in free[: len(waiting)]]
                slots |= {slot.sequence: slot for slot in joining}
                rows = _read_prompts(decoder, joining)
            else:
                rows = decoder.decode({i: slot.token_ids[-1:] for i, slot in slots.items()})
            for sequence, row in rows.items():
                if advance(slots[sequence], row):
                    ended = slots.pop(sequence)
                    ended.free()
                    yield ended
    finally:
        for slot in slots.values():
            slot.free()


def _read_prompts(decoder: Decoder, joining: Sequence[Slot]) -> dict[int, int]:
    """Decode the prompts of new slots; of prompts that begin alike, the beginning once."""
    first: list[Slot] = []
    then: list[Slot] = []
    for slot in joining:
        known = any(_common(slot.request.prompt, other.request.prompt) >= _WORTH_COPYING for other in first)
        (then if known else first).append(slot)
    if then and (beginnings := _pending(decoder, first, all_but_last=True)):
        decoder.decode(beginnings)
    return decoder.decode(_pending(decoder, joining))


def _pending(decoder: Decoder, slots: Sequence[Slot], all_but_last: bool = False) -> dict[int, Sequence[int]]:
    """What is still to be decoded of each slot's prompt."""
    for slot in slots:
        decoder.take(slot.sequence, slot.request.prompt)
    end = -1 if all_but_last else None
    pending = {slot.sequence: slot.request.prompt[decoder.held(slot.sequence) : end] for slot in slots}
    return {sequence: tokens for sequence, tokens in pending.items() if tokens}


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _sampler(sampling: Sampling) -> Any:
    """A llama.cpp sampler chain in its own order: top-k, top-p, temperature, draw."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature == 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    for part in (
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(sampling.seed),
    ):
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain
