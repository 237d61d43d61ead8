"""Peak memory of a divergence over a real vocabulary: it must not grow with the tokens compared.

    python -m bench.divergence [--tokens 512 4096]

A random model of one small layer with 151,936 tokens, as a GGUF file and as a Hugging Face folder, is compared
with another such model. Every row is a process of its own; "read" is one that opens both and compares one token.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from bench.merge import timed
from bench.tiny import PAIR
from export.gguf.write import write_gguf
from rpam_lite.checkpoint.source import CheckpointSource

VOCABULARY = 151_936
COMPARE = """
import random, sys
from pathlib import Path
from quant.divergence import divergence
base, other, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ids = [random.Random(0).randrange(500) for _ in range(tokens)]
print(divergence(base, [other], [ids], [1], threads=1))
"""


def make_models(folder: Path) -> None:
    """Two checkpoints, a and b, and their GGUF files."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(PAIR / "long" / file, folder / name)
        source = CheckpointSource(folder / name)
        write_gguf(source, source.config, folder / name, folder / f"{name}.gguf", "F16", "bench")


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a divergence over a real vocabulary.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_models(folder)
        print(f"{VOCABULARY:,} tokens in the vocabulary; one model's logits as one float32 array for comparison")
        print("| models | tokens | seconds | peak resident set | logits as one array |")
        print("|---|---:|---:|---:|---:|")
        for kind, names in (("GGUF", ("a.gguf", "b.gguf")), ("folder", ("a", "b"))):
            for tokens in (2, *args.tokens):
                paths = [str(folder / name) for name in names]
                seconds, peak = timed([sys.executable, "-c", COMPARE, *paths, str(tokens)])
                label = "read" if tokens == 2 else f"{tokens:,}"
                array = tokens * VOCABULARY * 4 / 2**20
                print(f"| {kind} | {label} | {seconds:.1f} | {peak / 2**20:.0f} MiB | {array:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
