"""Small experiments on the digits: an epoch takes a fraction of a second."""

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

_SIZES = {"embed_dim": 16, "projector_hidden_dim": 16}
METHODS: dict[str, dict[str, Any]] = {
    "simlap": {},
    "supcon": {"method": {"kind": "supcon", **_SIZES}},
    "khosla": {"method": {"kind": "supcon", "variant": "khosla", **_SIZES}},
    "one_to_one": {
        "method": {"kind": "supcon", "variant": "one_to_one", **_SIZES},
        "data": {"sampling": {"kind": "pk", "classes": 8, "images": 16}},
    },
    "simclr": {"method": {"kind": "simclr", **_SIZES}, "data": {"augment": {"views": 2}}},
    "supervised": {"method": {"kind": "supervised", "label_smoothing": 0.1}},
    "fuse": {"method": {"kind": "fuse", **_SIZES}},
}
"""Every method and variant by name, as changes of `TREE`."""


def tiny(**changes: Any) -> Experiment:
    """The small experiment with values changed: `tiny(train__epochs=2)`."""
    return _changed(TREE, changes)


def tiny_method(name: str, **changes: Any) -> Experiment:
    """The small experiment of one of `METHODS`, with values changed as in `tiny`."""
    sections = METHODS[name]
    data = {**TREE["data"], **sections.get("data", {})}
    data["augment"] = {**TREE["data"]["augment"], **sections.get("data", {}).get("augment", {})}
    return _changed({**TREE, **sections, "data": data}, changes)


def _changed(tree: dict[str, Any], changes: dict[str, Any]) -> Experiment:
    return override(validate(Experiment, tree), [(path.replace("__", "."), value) for path, value in changes.items()])
