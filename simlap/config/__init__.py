"""The experiment file: schema, loading, overrides, identity."""

from simlap.config.identity import canonical_hash, cell_id, evaluation_id
from simlap.config.load import load_experiment, override, parse_override, validate
from simlap.config.schema import Experiment, GatePlugin, MethodPlugin

__all__ = [
    "Experiment",
    "GatePlugin",
    "MethodPlugin",
    "canonical_hash",
    "cell_id",
    "evaluation_id",
    "load_experiment",
    "override",
    "parse_override",
    "validate",
]
