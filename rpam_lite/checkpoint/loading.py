"""A whole checkpoint as transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpam_lite.errors import RpamError, one_line
from rpam_lite.quiet import without_loading_bars


def load_folder(auto: Any, folder: Path, mend: str = "download the checkpoint again", **options: Any) -> Any:
    """A model of transformers from a folder; nobody is asked for what the folder lacks.

    Args:
        auto: The class to load with, such as `AutoModelForCausalLM`.
        folder: Config and weights.
        mend: What to do where it can't be loaded.
        options: Of its `from_pretrained`.

    Raises:
        RpamError: transformers can't load it.
    """
    try:
        with without_loading_bars():
            return auto.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers raises whatever its parts raise
        raise RpamError(f"{folder}: transformers can't load it ({one_line(error)}); {mend}.") from None
