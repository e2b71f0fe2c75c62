"""Measurements of features and gates. They are imported when they are used: `names` needs no torch, and planning no more."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simlap.evaluate.collapse import collapse_metrics
    from simlap.evaluate.gates import gate_statistics
    from simlap.evaluate.knn import knn_top1

__all__ = ["collapse_metrics", "gate_statistics", "gate_warning", "knn_top1"]

_HOMES = {"collapse_metrics": "collapse", "gate_statistics": "gates", "gate_warning": "openness", "knn_top1": "knn"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
