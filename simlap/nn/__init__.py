"""Networks: backbone, projector and the feature filter."""

from simlap.nn.backbone import build_backbone
from simlap.nn.filter import FeatureFilter, GateOutput, build_filter
from simlap.nn.projector import Projector

__all__ = ["FeatureFilter", "GateOutput", "Projector", "build_backbone", "build_filter"]
