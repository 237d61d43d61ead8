"""math-verify in a process of its own: parsing what a model wrote can take for ever.

The process is started when it is first needed, answers one question after another, and is killed
when it takes too long. Run as a module, this file is that process.
"""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from functools import lru_cache

SECONDS = 10.0
_worker: subprocess.Popen[str] | None = None


@lru_cache(maxsize=65536)
def verified(gold: str, answer: str, seconds: float = SECONDS) -> bool | None:
    """Whether two expressions are mathematically the same; None if that took too long to find out.

    Args:
        gold: The reference. The order matters: intervals are accepted in one direction only.
        answer: What the model answered.
        seconds: After these the process is killed. The first call also waits for its start.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """
    worker = _running()
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps([gold, answer]) + "\n")
    worker.stdin.flush()
    with ThreadPoolExecutor(1) as waiting:
        line = waiting.submit(worker.stdout.readline)
        try:
            return bool(json.loads(line.result(seconds) or "false"))
        except TimeoutError:
            _stop()
            return None


def _running() -> subprocess.Popen[str]:
    global _worker
    if _worker is None or _worker.poll() is not None:
        import math_verify  # noqa: F401 - named here if it is missing, not in the child

        command = [sys.executable, "-m", "quant.tasks.verify"]
        _worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert _worker.stdout is not None
        _worker.stdout.readline()  # "ready": imports are done
    return _worker


@atexit.register
def _stop() -> None:
    if _worker is not None:
        _worker.kill()
        _worker.wait()


def _serve() -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
        # json has no numpy or sympy booleans.
        print(json.dumps(bool(verify(gold, answer, timeout_seconds=None))), flush=True)


if __name__ == "__main__":
    _serve()
