"""Time and memory of writing a merge: ours, mergekit's linear merge, and copying the same bytes.

    python -m bench.merge [--shape qwen2.5-1.5b] [--repeats 3] [--mergekit VENV/bin/mergekit-yaml]

Two random bf16 checkpoints of that shape, two shards each, are made in a temporary folder. The ways
take turns, each in a process of its own, each with a sync at its end; the median of all turns is
told. The floor reads one checkpoint and copies the other. mergekit, in a virtual environment of its
own, is left out without --mergekit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.random_models import make_checkpoint
from rpam_lite.platform import peak_memory, sync_disks

# What the child does: the merge at lambda 0.5 in bf16, with nothing imported that it does not need.
OURS = """
import sys, torch
from pathlib import Path
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.merge.apply import MergedSource
folder = Path(sys.argv[1])
if folder.exists():
    long, short = CheckpointSource(folder / "long"), CheckpointSource(folder / "short")
    source = MergedSource(long, short, lambda name: 0.5, torch.bfloat16)
    write_checkpoint(source, long.config, folder / "long", folder / "out", torch.bfloat16, {})
"""


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds of a command with a sync after it, and the largest resident set of its process in bytes."""
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            # The kernel's own high-water mark: what rusage tells would include this process's at the fork.
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.01)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}")
    sync_disks()
    return time.monotonic() - begin, peak


def commands(folder: Path, mergekit: str | None) -> dict[str, list[str]]:
    """Every way, writing into `folder`/out."""
    ways = {
        "ours": [sys.executable, "-c", OURS, str(folder)],
        "floor": ["sh", "-c", f"cat {folder}/short/*.safetensors > /dev/null; cp -r {folder}/long {folder}/out"],
    }
    if mergekit:
        config = folder / "linear.yaml"
        models = "".join(f"  - model: {folder}/{p}\n    parameters: {{weight: 0.5}}\n" for p in ("long", "short"))
        config.write_text(f"merge_method: linear\nmodels:\n{models}dtype: bfloat16\n", encoding="utf-8")
        ways["mergekit"] = [mergekit, str(config), str(folder / "out"), "--no-copy-tokenizer"]
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description="Writing a merge: ours, mergekit, and copying.")
    parser.add_argument("--shape", default="qwen2.5-1.5b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", help="path of mergekit-yaml in an environment of its own")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, parent in enumerate(("long", "short")):
            make_checkpoint(folder / parent, args.shape, seed)
        for _ in range(args.repeats):
            for name, command in commands(folder, args.mergekit).items():
                found.setdefault(name, []).append(timed(command))
                shutil.rmtree(folder / "out")
    bare = timed([sys.executable, "-c", OURS, "/nowhere"])[1]
    print(f"{args.shape}, median of {args.repeats}; our interpreter with its packages alone: {bare / 2**20:.0f} MiB")
    print("| way | seconds | of the floor | peak resident set |")
    print("|---|---:|---:|---:|")
    floor = statistics.median(seconds for seconds, _ in found["floor"])
    for name, turns in found.items():
        seconds, peak = (statistics.median(column) for column in zip(*turns, strict=True))
        print(f"| {name} | {seconds:.1f} | {seconds / floor:.2f} | {peak / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
