"""Measurements of features and gates."""

from simlap.evaluate.collapse import collapse_metrics
from simlap.evaluate.gates import gate_statistics, gate_warning
from simlap.evaluate.knn import knn_top1

__all__ = ["collapse_metrics", "gate_statistics", "gate_warning", "knn_top1"]
