"""The one error a user sees: a sentence that names the value, its place and the next step."""

from __future__ import annotations

from collections.abc import Sequence

# Which extra of `pip install rpam_lite[...]` brings a package that is imported late.
EXTRA_OF = {
    "torch": "merge",
    "transformers": "merge",
    "tokenizers": "merge",
    "huggingface_hub": "merge",
    "safetensors": "merge",
    "scipy": "merge",
    "bitsandbytes": "nf4",
    "accelerate": "nf4",
    "peft": "methods",
    "gguf": "gguf",
    "llama_cpp": "gguf",
    "math_verify": "eval",
    "matplotlib": "report",
    "jinja2": "report",
    "datasets": "eval",
    "pandas": "eval",
    "httpx": "http",
    "sklearn": "siblings",
    "lm_eval": "lm-eval",
}


class RpamError(Exception):
    """Something the user can mend. The message is shown as it is, without a traceback.

    Args:
        message: One sentence.
        code: Where the kind of error does not follow from the module that raises it (`rpam_lite.error_codes`).
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def one_line(error: BaseException, limit: int = 200) -> str:
    """What another package's error says, on one line of at most so many characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def some(items: Sequence[object]) -> str:
    """The first three, and how many more."""
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def missing_package(error: ModuleNotFoundError) -> RpamError | None:
    """The error to show for a package that an extra would have brought; None for any other."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRA_OF:
        return None
    return RpamError(
        f"The package {package!r} is not installed and this step needs it; "
        f"install it with: pip install 'rpam_lite[{EXTRA_OF[package]}]'",
        code="E19",
    )
