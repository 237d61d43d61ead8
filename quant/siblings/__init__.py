"""Siblings of a merged model: two models, or two modes of one, and a rule that chooses between them as they run.

They are engines, so that `quant.evaluate` measures them like any model. The oracle is what no such rule can beat.
"""

from quant.siblings.car import CarEngine, Gate, fit_gate, perplexity, read_gate, write_gate
from quant.siblings.oracle import oracle, oracle_run
from quant.siblings.probe import Probe, fit_probe, read_probe, write_probe
from quant.siblings.routed import RoutedEngine
from quant.siblings.states import folder_states, last_hidden_states
from quant.siblings.way import Way, empty_think

__all__ = [
    "CarEngine",
    "Gate",
    "Probe",
    "RoutedEngine",
    "Way",
    "empty_think",
    "fit_gate",
    "fit_probe",
    "folder_states",
    "last_hidden_states",
    "oracle",
    "oracle_run",
    "perplexity",
    "read_gate",
    "read_probe",
    "write_gate",
    "write_probe",
]
