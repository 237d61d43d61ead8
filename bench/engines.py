"""Generated tokens per second: ours with 1, 4 and 16 sequences in flight, llama-cpp-python's own call, transformers.

    python -m bench.engines [--shape qwen2.5-0.5b] [--tokens 32] [--threads 2] [--repeats 3]

The embedded Long model (F16) and a random model of that shape (Q4_K_M) answer 16 questions: sampled, each
cut off at the same number of tokens, so that all ways do the same work. Ways take turns; the median is told.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import torch

from bench.random_models import make_checkpoint
from bench.tiny import PAIR, written_questions
from export.gguf.write import write_gguf
from quant.engines import Request, Sampling
from quant.engines.llama_cpp import LlamaCppEngine
from quant.gguf import Settings, quantize
from rpam_lite.checkpoint.source import CheckpointSource

IN_FLIGHT = (1, 4, 16)
QUESTIONS = 16


def ours(file: Path, requests: list[Request], parallel: int, threads: int) -> Callable[[], int]:
    """Our engine with so many sequences in flight."""
    engine = LlamaCppEngine(file, parallel, threads)
    return lambda: sum(completion.generated for completion in engine.generate(requests))


def one_by_one(file: Path, requests: list[Request], threads: int) -> Callable[[], int]:
    """llama-cpp-python's `create_completion` in a loop."""
    model = llama_cpp.Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run() -> int:
        total = 0
        for request in requests:
            sampling = request.sampling
            answer = model.create_completion(
                list(request.prompt),
                max_tokens=request.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=0.0,
                repeat_penalty=1.0,
                seed=sampling.seed,
            )
            total += answer["usage"]["completion_tokens"]
        return total

    return run


def whole_model(folder: Path, requests: list[Request], threads: int) -> Callable[[], int]:
    """transformers' `generate` in fp32, which CPUs without bf16 instructions do best; one batch, padded on the left."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    width = max(len(request.prompt) for request in requests)
    ids = torch.tensor([[0] * (width - len(r.prompt)) + list(r.prompt) for r in requests])
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in requests])

    def run() -> int:
        limit = requests[0].max_tokens
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=True, temperature=0.6, top_p=0.95,
            top_k=20, pad_token_id=0,
        )  # fmt: skip
        return int(out.shape[1] - width) * len(requests)

    return run


def compare(name: str, file: Path, folder: Path, tokens: int, threads: int, repeats: int) -> None:
    """Print one model's rows."""
    prompts = [
        t[:n].tolist()
        for questions in [written_questions(2)]
        for t, n in zip(questions.token_ids, questions.prompt_lengths, strict=True)
    ]
    requests = [Request(str(i), tuple(prompts[i]), tokens, Sampling(0.6, 0.95, 20, seed=i)) for i in range(QUESTIONS)]
    ways = {f"ours, {n} in flight": ours(file, requests, n, threads) for n in IN_FLIGHT}
    ways["create_completion, one by one"] = one_by_one(file, requests, threads)
    ways["transformers, fp32, one batch"] = whole_model(folder, requests, threads)
    speeds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for way, run in ways.items():
            began = time.monotonic()
            made = run()
            speeds.setdefault(way, []).append(made / (time.monotonic() - began))
    base = statistics.median(speeds["create_completion, one by one"])
    for way, found in speeds.items():
        speed = statistics.median(found)
        print(f"| {name} | {way} | {speed:.1f} | {speed / base:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generated tokens per second.")
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = CheckpointSource(PAIR / "long")
        write_gguf(small, small.config, small.folder, folder / "tiny.gguf", "F16", "bench")
        make_checkpoint(folder / "large", args.shape, 0)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(PAIR / "long" / name, folder / "large")
        large = CheckpointSource(folder / "large")
        write_gguf(large, large.config, large.folder, folder / "f16.gguf", "F16", "bench")
        quantize(folder / "f16.gguf", folder / "q4.gguf", "Q4_K_M", Settings(args.threads))
        print(f"{QUESTIONS} questions, {args.tokens} tokens at most, {args.threads} threads, median of {args.repeats}")
        print("| model | way | tokens per second | of create_completion |")
        print("|---|---|---:|---:|")
        compare("embedded, F16", folder / "tiny.gguf", PAIR / "long", args.tokens, args.threads, args.repeats)
        compare(f"{args.shape}, Q4_K_M", folder / "q4.gguf", folder / "large", args.tokens, args.threads, args.repeats)


if __name__ == "__main__":
    main()
