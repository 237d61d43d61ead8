"""A ```math fence, as GitHub shows it, becomes MathML in the site: browsers show it without scripts."""

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """What mkdocs calls once it has read mkdocs.yml."""
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": _mathml}
    ]
    return config


def _mathml(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{convert(source, display="block")}</div>'
