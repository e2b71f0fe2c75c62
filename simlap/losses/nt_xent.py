"""NT-Xent, the loss of SimCLR (Chen et al. 2020, arXiv 2002.05709, equation 1), for any number of views.

Shapes: B anchors, N keys, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simlap.losses.arguments import (
    check_indices,
    check_labels,
    check_normaliser,
    check_temperature,
    check_vectors,
)
from simlap.losses.contrast import pair_losses, positive_mask
from simlap.losses.unit import inverse_count


def nt_xent(
    z: Tensor,
    keys: Tensor,
    samples: Tensor,
    key_samples: Tensor,
    self_index: Tensor,
    *,
    temperature: float | Tensor,
    num_positives: float | Tensor | None = None,
) -> Tensor:
    """The mean over positive pairs (i, j) of -log(e^l_ij / sum over k != i of e^l_ik), l = cosine / temperature.

    Positives of an anchor are the other views of its image. With two views this is the standard form: one positive for
    each anchor, the mean over all rows. Anchors without positives contribute nothing; without any positive the loss is
    0 and its gradients are zeros. Zero vectors have similarity 0 and gradient 0. The arithmetic is float32 (float64 if
    an input is), whatever autocast says.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers; the anchors are among them.
        samples: [B] int, number of each anchor's image.
        key_samples: [N] int, the keys'.
        self_index: [B] int64, each anchor's own column among the keys.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        num_positives: the normaliser where it is not the local number of positive pairs: the global one under data
            parallelism, the sum of the workers' `count_view_pairs`.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value.
    """
    check_vectors(z, keys)
    check_labels("samples", samples, z)
    check_labels("key_samples", key_samples, keys)
    check_indices("self_index", self_index, z, keys)
    check_temperature(temperature)
    check_normaliser("num_positives", num_positives)
    positive = positive_mask(samples, key_samples, self_index)  # [B, N]
    if num_positives is None:
        num_positives = positive.sum()
    with torch.autocast(z.device.type, enabled=False):
        losses = pair_losses(z, keys, positive, self_index, temperature)  # [B, N]
        return losses.sum() * inverse_count(num_positives, z.device).to(losses.dtype)


def count_view_pairs(samples: Tensor, key_samples: Tensor, self_index: Tensor) -> Tensor:
    """Number of positive pairs of `nt_xent`, which explains the arguments.

    Returns:
        Scalar int64 on the samples' device, without synchronising with it.
    """
    return positive_mask(samples, key_samples, self_index).sum()
