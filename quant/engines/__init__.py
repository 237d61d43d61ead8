"""Engines: what runs a model. One protocol, `Engine`, and its implementations."""

from quant.engines.base import Completion, Engine, Request, Sampling

__all__ = ["Completion", "Engine", "Request", "Sampling"]
