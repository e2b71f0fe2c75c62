"""What NT-Xent and SupCon have in common: a softmax over all keys but the anchor's own.

Shapes: B anchors, N keys.
"""

from __future__ import annotations

import math

from torch import Tensor

from simlap.losses.unit import cosine_logits


def positive_mask(pair_labels: Tensor, key_labels: Tensor, self_index: Tensor) -> Tensor:
    """[B, N], true at the keys of each anchor's pair label, its own column left out."""
    same = key_labels[None, :] == pair_labels[:, None]
    return same.scatter(1, self_index[:, None], False)


def pair_losses(z: Tensor, keys: Tensor, positive: Tensor, self_index: Tensor, temperature: float | Tensor) -> Tensor:
    """-log(e^l_ij / sum over all k but i's own of e^l_ik) at the positives j, 0 elsewhere: [B, N]."""
    logits = cosine_logits(z, keys, temperature)  # [B, N]
    others = logits.scatter(1, self_index[:, None], -math.inf)
    return (others.logsumexp(dim=1, keepdim=True) - logits).masked_fill(~positive, 0.0)
