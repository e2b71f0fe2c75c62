"""Losses: tensors and plain arguments in, a scalar out.

Each takes the normaliser of the whole batch, so that the losses of several workers, each of its own anchors and all
keys, add up to that of one; the function that counts a worker's share of it stands beside the loss.
"""

from simlap.losses.nt_xent import count_view_pairs, nt_xent
from simlap.losses.one_to_one import count_terms, one_to_one
from simlap.losses.subspace_info_nce import count_positives, subspace_info_nce
from simlap.losses.supcon import count_anchors, supcon

__all__ = [
    "count_anchors",
    "count_positives",
    "count_terms",
    "count_view_pairs",
    "nt_xent",
    "one_to_one",
    "subspace_info_nce",
    "supcon",
]
