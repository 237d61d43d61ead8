"""Whether the engine that `label.engine` names can sample both parents."""

from __future__ import annotations

from rpam_lite.checkpoint.aligned import AlignedSource
from rpam_lite.checkpoint.files import is_adapter
from rpam_lite.checkpoint.pair import Pair
from rpam_lite.errors import RpamError
from rpam_lite.recipe import Recipe

# Transformers' engines, with the bits of a weight.
BITS = {"bf16": 16, "int8": 8, "nf4": 4}


def check_engine(recipe: Recipe, pair: Pair) -> None:
    """Refuse an engine that would misread a parent; llama.cpp's files hold whole parents in the donor's vocabulary.

    Raises:
        RpamError: A parent would be asked with token ids that are not its own, or is an adapter.
    """
    engine = recipe.label.engine
    if engine == "gguf":
        return
    for name, source in (("long", pair.long), ("short", pair.short)):
        path, reason = getattr(recipe.parents, name), None
        if isinstance(source, AlignedSource):
            reason = "has other token ids than the donor of the tokenizer"
        elif engine in BITS and is_adapter(path):
            reason = "is a LoRA adapter"
        if reason:
            raise RpamError(
                f"{path}: {reason}, and `label.engine: {engine}` runs the checkpoint as it is; "
                "set `label.engine: gguf`, whose files hold whole parents in the donor's vocabulary."
            )
