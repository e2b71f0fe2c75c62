"""Losses: tensors and plain arguments in, a scalar out."""

from simlap.losses.subspace_info_nce import count_positives, subspace_info_nce

__all__ = ["count_positives", "subspace_info_nce"]
