"""Whether the plug-ins of an experiment do what their contract asks, as far as a small trial shows."""

from __future__ import annotations

import torch

from simlap.config import schema
from simlap.config.schema.plugins import GatePlugin, origin_of, plugins_in
from simlap.data.batch import Pairs
from simlap.errors import ConfigError
from simlap.methods.build import method_class
from simlap.nn.filter import FeatureFilter, GateOutput, build_filter

_ROWS, _DIM = 4, 8


def check_plugins(experiment: schema.Experiment, num_classes: int) -> None:
    """Import what the experiment's plug-ins name, and try gates on a few rows; meant to be asked before anything starts.

    Args:
        experiment: to be run.
        num_classes: C.

    Raises:
        ConfigError: names the key, the package and the entry point.
    """
    for path, plugin in plugins_in(experiment.method, "method").items():
        try:
            if isinstance(plugin, GatePlugin):
                _try_gate(plugin, num_classes)
            else:
                method_class(experiment)
        except ConfigError as error:
            raise ConfigError(error.message, key=f"{path}.kind", value=plugin.kind) from error


def _try_gate(plugin: GatePlugin, num_classes: int) -> None:
    where = f"{plugin.implementation} of {origin_of(plugin)}"
    labels = torch.arange(_ROWS) % num_classes
    pair_labels = labels.flip(0)
    try:
        with torch.random.fork_rng(devices=[]):
            gate = build_filter(plugin, num_classes, _DIM)
            noise = gate.draw_noise(_ROWS, torch.Generator().manual_seed(0))
        for training in (True, False):
            for pairs in (None, Pairs.of(labels, pair_labels)):
                gate.train(training)
                with torch.no_grad():
                    reason = _unfit(gate, gate(labels, pair_labels, noise, pairs))
                if reason:
                    raise ConfigError(f"{where} {reason}")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} fails on {_ROWS} rows: {type(error).__name__}: {error}") from error


def _unfit(gate: FeatureFilter, output: object) -> str | None:
    """What of a filter's output breaks its contract."""
    if not isinstance(output, GateOutput):
        return f"must give a simlap.nn.GateOutput, not {type(output).__name__}"
    gates = output.of_rows
    if gates.shape != (_ROWS, _DIM):
        return f"must give gates of shape [b, D] = {[_ROWS, _DIM]}, not {[*gates.shape]}"
    if not bool(((gates >= 0) & (gates <= 1)).all()):
        return "must give gates in [0, 1]"
    if output.regulariser.shape != ():
        return f"must give a scalar as regulariser, not a tensor of shape {[*output.regulariser.shape]}"
    return None
