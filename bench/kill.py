"""Kill a large merge again and again, and fill a disk under it: what comes out must be the same bytes.

    python -m bench.kill [--shape qwen2.5-1.5b] [--times 8]

Two random checkpoints of that shape are merged once undisturbed and once killed with SIGKILL at `times`
random moments. Then the merge goes to a file system of half its size (as root: a tmpfs of its own).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.merge import OURS
from bench.random_models import make_checkpoint
from rpam_lite.checkpoint.stream import JOURNAL
from rpam_lite.platform import sync_disks


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file of a finished merge."""
    found = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as handle:
            found[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def merge(folder: Path, seconds: float | None = None) -> tuple[int, str]:
    """Merge into `folder`/out, killed after this many seconds; exit code and what it wrote to stderr."""
    process = subprocess.Popen([sys.executable, "-c", OURS, str(folder)], stderr=subprocess.PIPE, encoding="utf-8")
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    _, errors = process.communicate()
    return process.returncode, errors


def killed(folder: Path, times: int, whole: float) -> list[str]:
    """Kill the merge at random moments, then let it end; for each kill, how many chunks were written by then."""
    seen = []
    moments = random.Random(1)
    for _ in range(times):
        code, _ = merge(folder, moments.uniform(0.2, 0.5) * whole)
        written = [int(file.read_text(encoding="utf-8").splitlines()[-1]) for file in folder.glob(f"*/{JOURNAL}")]
        seen.append(f"exit code {code}, {written[0] if written else 'no'} chunks written")
    code, errors = merge(folder)
    if code:
        sys.exit(f"after the kills the merge failed: {errors}")
    return seen


def on_a_small_disk(folder: Path, size: int) -> str:
    """What the merge says where only `size` bytes fit."""
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], check=False).returncode:
        return "no permission to mount a file system; not tried"
    try:
        for parent in ("long", "short"):
            (small / parent).symlink_to(folder / parent)
        code, errors = merge(small)
        left = sorted(p.name for p in small.iterdir())
        return f"exit code {code}: {errors.strip().splitlines()[-1]}\nleft there: {left}"
    finally:
        subprocess.run(["umount", small], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A merge that is killed, and one without room.")
    parser.add_argument("--shape", default="qwen2.5-1.5b")
    parser.add_argument("--times", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, parent in enumerate(("long", "short")):
            make_checkpoint(folder / parent, args.shape, seed)
        sync_disks()
        begin = time.monotonic()
        code, errors = merge(folder)
        if code:
            sys.exit(errors)
        whole = time.monotonic() - begin
        expected = digests(folder / "out")
        size = sum(f.stat().st_size for f in (folder / "out").iterdir())
        print(f"undisturbed: {whole:.1f} s, {size / 1e9:.2f} GB")
        shutil.rmtree(folder / "out")
        for line in killed(folder, args.times, whole):
            print(f"killed: {line}")
        print("the same bytes" if digests(folder / "out") == expected else "OTHER BYTES")
        shutil.rmtree(folder / "out")
        print(on_a_small_disk(folder, size // 2))


if __name__ == "__main__":
    main()
