"""Methods: from a batch to a loss and its metrics."""

from simlap.methods.base import Method, StepOutput
from simlap.methods.build import build_method, pair_kind
from simlap.methods.check import check_loss
from simlap.methods.plugins import check_plugins

__all__ = ["Method", "StepOutput", "build_method", "check_loss", "check_plugins", "pair_kind"]
