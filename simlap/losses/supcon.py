"""The supervised contrastive loss L_out (Khosla et al. 2020, arXiv 2004.11362, equation 2), for any pair labels.

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


def supcon(
    z: Tensor,
    keys: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    self_index: Tensor,
    *,
    temperature: float | Tensor,
    num_anchors: float | Tensor | None = None,
) -> Tensor:
    """The mean over anchors i of the mean over their positives j of -log(e^l_ij / sum over k != i of e^l_ik).

    l = cosine / temperature. Positives of an anchor are the keys of its pair class but itself; the paper's loss has the
    anchors' own classes as pair labels. Anchors without positives are left out of the mean; without any positive the
    loss is 0 and its gradients are zeros. Zero vectors have similarity 0 and gradient 0. The arithmetic is float32
    (float64 if an input is), whatever autocast says.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers; the anchors are among them.
        pair_labels: [B] int, the anchors' pair classes p.
        key_labels: [N] int, the keys' classes.
        self_index: [B] int64, each anchor's own column among the keys.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        num_anchors: the normaliser where it is not the local number of anchors with positives: the global one under
            data parallelism, the sum of the workers' `count_anchors`.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value.
    """
    check_vectors(z, keys)
    check_labels("pair_labels", pair_labels, z)
    check_labels("key_labels", key_labels, keys)
    check_indices("self_index", self_index, z, keys)
    check_temperature(temperature)
    check_normaliser("num_anchors", num_anchors)
    positive = positive_mask(pair_labels, key_labels, self_index)  # [B, N]
    if num_anchors is None:
        num_anchors = positive.any(dim=1).sum()
    with torch.autocast(z.device.type, enabled=False):
        losses = pair_losses(z, keys, positive, self_index, temperature)  # [B, N]
        means = losses.sum(dim=1) / positive.sum(dim=1).clamp(min=1)  # [B]
        return means.sum() * inverse_count(num_anchors, z.device).to(losses.dtype)


def count_anchors(pair_labels: Tensor, key_labels: Tensor, self_index: Tensor) -> Tensor:
    """Number of anchors with positives in `supcon`, which explains the arguments.

    Returns:
        Scalar int64 on the labels' device, without synchronising with it.
    """
    return positive_mask(pair_labels, key_labels, self_index).any(dim=1).sum()
