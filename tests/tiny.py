"""A small experiment on the digits: an epoch takes a fraction of a second."""

from __future__ import annotations

from typing import Any

from simlap.config import Experiment, override, validate

TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "augment": {"flip": 0.0, "rotate": 5, "erase": 0.2}},
    "backbone": {"name": "conv3", "kwargs": {"widths": [4, 8]}},
    "method": {
        "kind": "simlap",
        "pairs": "arbitrary",
        "gate": {"kind": "gumbel", "embedding_dim": 8, "hidden_dim": 16},
        "embed_dim": 16,
        "projector_hidden_dim": 16,
    },
    "optim": {"lr": 0.01, "warmup_epochs": 1},
    "train": {"epochs": 3, "batch_size": 128},
}


def tiny(**changes: Any) -> Experiment:
    """The small experiment with values changed: `tiny(train__epochs=2)`."""
    return override(validate(Experiment, TREE), [(path.replace("__", "."), value) for path, value in changes.items()])
