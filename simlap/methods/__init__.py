"""Methods: from a batch to a loss and its metrics."""

from simlap.methods.simlap import SimLAP, StepOutput, build_method

__all__ = ["SimLAP", "StepOutput", "build_method"]
