"""Methods: from a batch to a loss and its metrics."""

from simlap.methods.base import Method, StepOutput
from simlap.methods.build import build_method, pair_kind
from simlap.methods.check import check_loss

__all__ = ["Method", "StepOutput", "build_method", "check_loss", "pair_kind"]
