"""Time and memory of the GGUF export: ours against llama.cpp's own converter.

    python -m bench.export [--shape qwen2.5-1.5b] [--repeats 3] [--llama-cpp SOURCE --python VENV/bin/python]

A random bf16 checkpoint of that shape, two shards, with the embedded pair's tokenizer, goes to F16. Whole
processes with a sync at the end take turns; the median of all turns is told. llama.cpp's converter,
from its source in an environment of its own with torch and transformers, is left out without --llama-cpp.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from bench.merge import timed
from bench.random_models import make_checkpoint
from bench.tiny import PAIR

OURS = """
import sys
from pathlib import Path
from export.gguf.write import write_gguf
from rpam_lite.checkpoint.source import CheckpointSource
folder = Path(sys.argv[1])
if folder.exists():
    source = CheckpointSource(folder / "model")
    write_gguf(source, source.config, folder / "model", folder / "out.gguf", "F16", "bench")
"""
# llama.cpp's converter knows tokenizers by a hash; the embedded pair's is told to it.
OFFICIAL = """
import runpy, sys
source = sys.argv[1]
sys.path[:0] = [source, source + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv[:2] = [source + "/convert_hf_to_gguf.py"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def commands(folder: Path, source: str | None, python: str) -> dict[str, list[str]]:
    """Every way, writing `folder`/out.gguf."""
    ways = {"ours": [sys.executable, "-c", OURS, str(folder)]}
    if source:
        arguments = [str(folder / "model"), "--outfile", str(folder / "out.gguf"), "--outtype", "f16"]
        ways["llama.cpp's converter"] = [python, "-c", OFFICIAL, source, *arguments]
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description="GGUF export: ours against llama.cpp's converter.")
    parser.add_argument("--shape", default="qwen2.5-1.5b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--llama-cpp", help="folder of llama.cpp's source")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the converter's packages")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoint(folder / "model", args.shape, 0)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(PAIR / "long" / name, folder / "model")
        for _ in range(args.repeats):
            for name, command in commands(folder, args.llama_cpp, args.python).items():
                found.setdefault(name, []).append(timed(command))
                (folder / "out.gguf").unlink()
    bare = timed([sys.executable, "-c", OURS, "/nowhere"])[1]
    print(f"{args.shape}, median of {args.repeats}; our interpreter with its packages alone: {bare / 2**20:.0f} MiB")
    print("| way | seconds | peak resident set |")
    print("|---|---:|---:|")
    for name, turns in found.items():
        seconds, peak = (statistics.median(column) for column in zip(*turns, strict=True))
        print(f"| {name} | {seconds:.1f} | {peak / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
