"""Findings about two configs: what must agree, and what the donor decides.

Compared with every default filled in and both spellings of rope read, as transformers reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpam_lite.preflight.findings import Finding

# Must agree, or the merged weights would be read by a model that they do not fit.
_SAME = {
    "model_type": "architecture",
    "hidden_size": "size",
    "intermediate_size": "size",
    "num_hidden_layers": "size",
    "num_attention_heads": "size",
    "num_key_value_heads": "size",
    "head_dim": "head-dim",
    "hidden_act": "activation",
    "rms_norm_eps": "norm-eps",
    "rope_parameters": "rope",
}
# May differ: the donor's value is kept.
_DONATED = {
    "max_position_embeddings": "context",
    "eos_token_id": "special-tokens",
    "bos_token_id": "special-tokens",
    "pad_token_id": "special-tokens",
    "sliding_window": "sliding-window",
    "use_sliding_window": "sliding-window",
}


def compare_configs(donor: Any, other: Any, where: str, donor_name: str) -> Iterator[Finding]:
    """Findings about two loaded configs.

    Args:
        donor: Config of the parent whose config the merge keeps.
        other: The other parent's.
        where: Names both folders, the donor's first.
        donor_name: `long` or `short`.
    """
    for field, code in _SAME.items():
        a, b = _value(donor, field), _value(other, field)
        if a != b:
            message = f"{where}: `{field}` is {a!r} and {b!r}; only models of one architecture merge."
            yield Finding("ERROR", code, message)
    for field, code in _DONATED.items():
        a, b = _value(donor, field), _value(other, field)
        if a != b:
            message = f"{where}: `{field}` is {a!r} and {b!r}."
            yield Finding("WARNING", code, message, f"keeps {a!r}, that of {donor_name}", "merge.donor")
    if donor.tie_word_embeddings and not other.tie_word_embeddings:
        message = f"{where}: the first ties its head to the embedding, the second has a head of its own."
        yield Finding("ERROR", "tied-head", message, "has no place for that head under this donor", "merge.donor")
    elif other.tie_word_embeddings and not donor.tie_word_embeddings:
        message = f"{where}: the first has a head of its own, the second ties it to the embedding."
        yield Finding("WARNING", "tied-head", message, "takes that embedding for the second head", "merge.donor")


def quantized_leftover(config: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """A checkpoint that says it is quantized."""
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "?") if isinstance(method, dict) else method
        message = f"{folder / 'config.json'}: has a `quantization_config` ({method}); use the unquantized checkpoint."
        yield Finding("ERROR", "quantized", message)


def _value(config: Any, field: str) -> Any:
    value = getattr(config, field, None)
    heads = getattr(config, "num_attention_heads", None)
    if field == "head_dim" and value is None and heads:
        return config.hidden_size // heads
    if field == "sliding_window" and not getattr(config, "use_sliding_window", True):
        return None
    return value
