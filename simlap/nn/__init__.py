"""Networks: backbone, projector, the feature filter, and the margin head of fuse."""

from simlap.nn.backbone import build_backbone
from simlap.nn.filter import FeatureFilter, GateOutput, build_filter, gate_penalty
from simlap.nn.margin import ArcGradHead, ArcGradOutput
from simlap.nn.projector import Projector, build_projector

__all__ = [
    "ArcGradHead",
    "ArcGradOutput",
    "FeatureFilter",
    "GateOutput",
    "Projector",
    "build_backbone",
    "build_filter",
    "build_projector",
    "gate_penalty",
]
