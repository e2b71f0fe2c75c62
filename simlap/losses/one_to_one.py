"""One-to-one contrast over PK batches: one positive among the P keys of another slot (docs/method.md, SupCon).

A PK batch has P classes of K different images each; an image's slot is its number, 0 to K-1, among those of its class.
Shapes: B anchors, N keys, D embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simlap.losses.arguments import (
    check_indices,
    check_labels,
    check_normaliser,
    check_temperature,
    check_vectors,
)
from simlap.losses.unit import cosine_logits, inverse_count


def one_to_one(
    z: Tensor,
    keys: Tensor,
    pair_classes: Tensor,
    key_classes: Tensor,
    slots: Tensor,
    key_slots: Tensor,
    *,
    temperature: float | Tensor,
    num_terms: float | Tensor | None = None,
) -> Tensor:
    """The mean over anchors and slots other than theirs of the cross-entropy over that slot's keys.

    A slot has one key of each class of the batch, and the target is the key of the anchor's pair class:
    -log(e^l_ij / sum over the k in j's slot of e^l_ik), l = cosine / temperature. Terms whose class is absent are left
    out; without any term the loss is 0 and its gradients are zeros. Zero vectors have similarity 0 and gradient 0. The
    arithmetic is float32 (float64 if an input is), whatever autocast says.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers.
        pair_classes: [B] int, the anchors' pair classes p.
        key_classes: [N] int, the keys' classes.
        slots: [B] int64 in 0..N-1, the anchors' slots.
        key_slots: [N] int64 in 0..N-1, the keys' slots.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        num_terms: the normaliser where it is not the local number of terms: the global one under data parallelism, the
            sum of the workers' `count_terms`.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value.
    """
    check_vectors(z, keys)
    check_labels("pair_classes", pair_classes, z)
    check_labels("key_classes", key_classes, keys)
    check_indices("slots", slots, z, keys)
    check_indices("key_slots", key_slots, keys, keys)
    check_temperature(temperature)
    check_normaliser("num_terms", num_terms)
    target = _targets(pair_classes, key_classes, slots, key_slots)  # [B, N]
    if num_terms is None:
        num_terms = target.sum()
    with torch.autocast(z.device.type, enabled=False):
        logits = cosine_logits(z, keys, temperature)  # [B, N]
        losses = (_logsumexp_in_slot(logits, key_slots) - logits).masked_fill(~target, 0.0)
        return losses.sum() * inverse_count(num_terms, z.device).to(losses.dtype)


def count_terms(pair_classes: Tensor, key_classes: Tensor, slots: Tensor, key_slots: Tensor) -> Tensor:
    """Number of terms of `one_to_one`, which explains the arguments.

    Returns:
        Scalar int64 on the classes' device, without synchronising with it.
    """
    return _targets(pair_classes, key_classes, slots, key_slots).sum()


def _targets(pair_classes: Tensor, key_classes: Tensor, slots: Tensor, key_slots: Tensor) -> Tensor:
    """[B, N], true at the keys of the anchor's pair class in slots other than its own."""
    return (key_classes[None, :] == pair_classes[:, None]) & (key_slots[None, :] != slots[:, None])


def _logsumexp_in_slot(logits: Tensor, key_slots: Tensor) -> Tensor:
    """[B, N], at (i, j) the log-sum-exp of anchor i's logits at the keys of j's slot."""
    index = key_slots.expand_as(logits)
    largest = torch.full_like(logits, -math.inf, requires_grad=False)
    largest = largest.scatter_reduce(1, index, logits.detach(), "amax").gather(1, index)
    # a product instead of scattered additions, whose order a GPU does not fix
    same_slot = (key_slots[:, None] == key_slots[None, :]).to(logits.dtype)  # [N, N]
    return largest + ((logits - largest).exp() @ same_slot).log()
