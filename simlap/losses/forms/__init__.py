"""How the subspace InfoNCE is computed: forms that give the same value and the same gradients.

`plain` and `compiled` leave the gradient to autograd, `chunked` goes through the anchors block by block, `fused` is for CUDA;
`ring` is `chunked` across workers, of whom none ever holds all keys.
"""

from simlap.losses.forms.chunked import chunked
from simlap.losses.forms.fused import fused_available, fused_subspace_info_nce
from simlap.losses.forms.plain import compiled, plain
from simlap.losses.forms.problem import Problem, count_positives
from simlap.losses.forms.ring import ring_subspace_info_nce

__all__ = [
    "Problem",
    "chunked",
    "compiled",
    "count_positives",
    "fused_available",
    "fused_subspace_info_nce",
    "plain",
    "ring_subspace_info_nce",
]
