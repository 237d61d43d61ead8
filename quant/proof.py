"""A written GGUF file, proven in llama.cpp: loaded in a process of its own, its tokens and logits compared.

    python -m quant.proof FILE TEXTS.json OUT.npz THREADS

is what that process runs: token ids of every text, and the logits on them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rpam_lite.errors import RpamError

# Largest difference of logits by file type, relative to the largest logit.
TOLERANCES = {"F32": 1e-4, "F16": 2e-2, "BF16": 5e-2, "Q8_0": 2e-1}


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        texts: Texts tokenized.
        tokens: Token ids compared.
        difference: Largest difference of logits relative to the largest one; None if none were compared.
        same_top: Share of positions with the same likeliest token; None likewise.
    """

    texts: int
    tokens: int
    difference: float | None = None
    same_top: float | None = None


def prove(
    file: Path,
    file_type: str,
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    logits_of: Callable[[Sequence[int]], np.ndarray] | None,
    threads: int = 2,
) -> Proof:
    """Compare a GGUF file, as llama.cpp loads it, with the checkpoint that it was made from.

    Args:
        file: The GGUF file.
        file_type: Its type, which decides how exact the logits must be.
        texts: Texts that are tokenized.
        token_ids: The checkpoint's own token ids of each.
        logits_of: The checkpoint's logits [positions, vocabulary] on token ids; None of a model that is
            too large to run twice.
        threads: CPU threads of llama.cpp.

    Returns:
        What was compared.

    Raises:
        RpamError: llama.cpp can't load or run the file, or a comparison failed; it is named. The file stays.
    """
    with TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "texts.json", Path(folder) / "answer.npz"
        asked.write_text(json.dumps({"texts": list(texts), "logits": logits_of is not None}), encoding="utf-8")
        command = [sys.executable, "-m", "quant.proof", str(file), str(asked), str(answer), str(threads)]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if result.returncode != 0:
            words = " ".join(result.stderr.split()[-40:]) or "no message"
            raise RpamError(f"{file}: not proven, llama.cpp does not run it (exit {result.returncode}; {words}).")
        with np.load(answer) as found:
            ids = [found[f"ids{i}"].tolist() for i in range(len(texts))]
            _compare_tokens(file, texts, token_ids, ids)
            count = sum(len(t) for t in token_ids)
            if logits_of is None:
                return Proof(len(texts), count)
            worst, same, positions = 0.0, 0, 0
            for i, own in enumerate(token_ids):
                expected = logits_of(own)
                _compare_logits(file, file_type, texts[i], expected, found[f"logits{i}"])
                worst = max(worst, _difference(expected, found[f"logits{i}"]))
                same += int((expected.argmax(-1) == found[f"logits{i}"].argmax(-1)).sum())
                positions += len(own)
            return Proof(len(texts), count, worst, same / positions)


def _compare_tokens(
    file: Path, texts: Sequence[str], expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]]
) -> None:
    for text, own, other in zip(texts, expected, found, strict=True):
        if list(own) != list(other):
            first = next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other))
            )
            raise RpamError(
                f"{file}: not proven, its tokens differ from the checkpoint's on {text[:60]!r} at token {first} "
                f"({list(own)[first : first + 3]} there, {list(other)[first : first + 3]} in llama.cpp); "
                "export again, and if it stays so, report it."
            )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1e-30, float(np.abs(expected).max())))


def _compare_logits(file: Path, file_type: str, text: str, expected: np.ndarray, found: np.ndarray) -> None:
    tolerance = TOLERANCES[file_type]
    difference = _difference(expected, found)
    if not difference <= tolerance:
        raise RpamError(
            f"{file}: not proven, its logits differ from the checkpoint's by {difference:.2g} of the largest on "
            f"{text[:60]!r}; {file_type} allows {tolerance:g}; export again, and if it stays so, report it."
        )
    ordered = np.sort(expected, axis=-1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * tolerance * np.abs(expected).max()
    if (wrong := clear & (expected.argmax(-1) != found.argmax(-1))).any():
        raise RpamError(
            f"{file}: not proven, another token is likeliest on {text[:60]!r} at {int(wrong.argmax())}; "
            "export again, and if it stays so, report it."
        )


def _answer(file: Path, asked: Path, answer: Path, threads: int) -> None:
    """What the child process does."""
    from quant.engines.llama_cpp import LlamaCppEngine
    from quant.logits import sequence_logits

    wanted = json.loads(asked.read_text(encoding="utf-8"))
    found: dict[str, np.ndarray] = {}
    with LlamaCppEngine(file, threads=threads) as engine:
        for i, text in enumerate(wanted["texts"]):
            ids = engine.tokenize(text)
            found[f"ids{i}"] = np.array(ids, dtype=np.int64)
            if wanted["logits"]:
                found[f"logits{i}"] = np.concatenate([part.copy() for part in sequence_logits(engine, ids)])
    np.savez(answer, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    try:
        _answer(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    except RpamError as error:
        sys.exit(str(error))
