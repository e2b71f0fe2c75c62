"""InfoNCE in the subspace that a class pair's gate opens (arXiv 2410.18200; docs/method.md, steps 3 to 5).

Shapes: B anchors, N keys, D embedding width, b anchors of one block.

The subspace cosine needs no B x N x D tensor: c = ((g^2 z) K^T) / (|g z| sqrt(g^2 (K^2)^T)). The gradient is known in
closed form and is made together with the value, block of anchors by block of anchors, so that a few [b, N] buffers are
all the extra memory. With LSE_i the log-sum-exp of anchor i's negative logits, n the number of positives and
a_ij = sigmoid(LSE_i - l_ij):

    loss = sum over positives of softplus(LSE_i - l_ij) / n
    d loss / d l_ij = -a_ij / n                                     at positives
    d loss / d l_ik = (sum_j a_ij) exp(l_ik - LSE_i) / n            at negatives
    d loss / d temperature = -sum of (d loss / d l) l / temperature
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simlap.losses.arguments import (
    Positives,
    Similarity,
    check_choice,
    check_floating,
    check_indices,
    check_labels,
    check_normaliser,
    check_temperature,
    check_vectors,
)
from simlap.losses.operands import Gradients, Operands
from simlap.losses.unit import inverse_count, tangent, unit_max, unit_norm

# entries of one [b, N] buffer: a megabyte stays in a core's cache, a GPU wants work to fill it
_BLOCK_ENTRIES = {"cpu": 2**18, "cuda": 2**24}
_BLOCK_ROWS = 64  # at least: thinner products are slow


def subspace_info_nce(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    similarity: Similarity = "cosine",
    positives: Positives = "pair",
    self_index: Tensor | None = None,
    num_positives: float | Tensor | None = None,
) -> Tensor:
    """The mean over positive pairs of log(e^l_ij + sum over negatives of e^l_ik) - l_ij.

    Positives of anchor i are the keys of its pair class (with `positives="either"` those of its own class too, as in
    fuse), negatives the keys that are neither of its own nor of its pair class; all other keys are ignored. An anchor
    without positives contributes nothing; without any positive the loss is 0 and its gradients are zeros. Zero vectors,
    in the subspace or altogether, have similarity 0 and gradient 0. The arithmetic is float32 (float64 if any input
    is), whatever autocast says; gradients come back in their input's dtype. First derivatives only.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers.
        gates: [B, D] each anchor's gate, in [0, 1].
        labels: [B] int, the anchors' classes y.
        pair_labels: [B] int, their pair classes p.
        key_labels: [N] int, the keys' classes.
        temperature: of the softmax; safe from 0.01 upwards. A scalar tensor gets its gradient.
        similarity: `cosine` (in the subspace) or `masked_dot` (gated dot product of the vectors normalised over all of
            R^D).
        positives: the keys of the `pair` class, or of `either` class, the pair's and the anchor's own.
        self_index: [B] int64, each anchor's own column among the keys. Given, that column is no positive.
        num_positives: the normaliser where it is not the local number of positives: the global one under data
            parallelism.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: an argument of the wrong shape, type or value.
    """
    check_choice("similarity", similarity, Similarity)
    check_choice("positives", positives, Positives)
    check_temperature(temperature)
    check_vectors(z, keys)
    check_floating("gates", gates, z.shape)
    check_labels("labels", labels, z)
    check_labels("pair_labels", pair_labels, z)
    check_labels("key_labels", key_labels, keys)
    if self_index is not None:
        check_indices("self_index", self_index, z, keys)
    check_normaliser("num_positives", num_positives)
    if num_positives is None:
        num_positives = count_positives(labels, pair_labels, key_labels, self_index, positives)
    labelling = _Labelling(labels, pair_labels, key_labels, self_index, positives == "either")
    inputs = [z, keys, gates, *([temperature] if isinstance(temperature, Tensor) else [])]
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    weight = inverse_count(num_positives, z.device)
    loss: Tensor = _SubspaceInfoNCE.apply(
        z, keys, gates, temperature, labelling, weight, similarity == "cosine", with_gradient
    )
    return loss


def count_positives(
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    self_index: Tensor | None = None,
    positives: Positives = "pair",
) -> Tensor:
    """Number of (anchor, positive key) pairs; see `subspace_info_nce` for the arguments.

    Args:
        labels: [B] int; counts with `positives="either"` only.
        pair_labels: [B] int.
        key_labels: [N] int.
        self_index: [B] int64 or None. Given, own columns are left out.
        positives: `pair` or `either`.

    Returns:
        Scalar int64 on the labels' device, without synchronising with it.
    """
    ordered = key_labels.sort().values  # [N]
    count = _members(ordered, pair_labels).sum()
    either = positives == "either"
    if either:
        count = count + _members(ordered, labels).masked_fill(labels == pair_labels, 0).sum()
    if self_index is not None:
        own = key_labels[self_index]
        count = count - ((own == pair_labels) | (own == labels) if either else own == pair_labels).sum()
    return count


def _members(ordered: Tensor, classes: Tensor) -> Tensor:
    """How many of the sorted labels [N] are of each of the classes [B]."""
    classes = classes.to(ordered.dtype).contiguous()
    return torch.searchsorted(ordered, classes, right=True) - torch.searchsorted(ordered, classes)


class _Labelling(NamedTuple):
    labels: Tensor  # [B]
    pair_labels: Tensor  # [B]
    key_labels: Tensor  # [N]
    self_index: Tensor | None  # [B]
    either: bool

    def masks(self, part: slice) -> tuple[Tensor, Tensor]:
        """`not_positive` and `not_negative` [b, N] of the anchors `part` (docs/method.md, step 4)."""
        not_positive = self.key_labels[None, :] != self.pair_labels[part, None]
        not_negative = (self.key_labels[None, :] == self.labels[part, None]).logical_or_(~not_positive)
        if self.either:
            not_positive = ~not_negative
        if self.self_index is not None:
            not_positive.scatter_(1, self.self_index[part, None], True)
        return not_positive, not_negative


class _SubspaceInfoNCE(torch.autograd.Function):
    """Value and gradients in one go; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        keys: Tensor,
        gates: Tensor,
        temperature: float | Tensor,
        labelling: _Labelling,
        weight: Tensor,
        cosine: bool,
        with_gradient: bool,
    ) -> Tensor:
        dtype = torch.float64 if torch.float64 in (z.dtype, keys.dtype, gates.dtype) else torch.float32
        scale = temperature.to(z.device, dtype) if isinstance(temperature, Tensor) else temperature
        inverse_temperature = 1.0 / scale
        rows = max(_BLOCK_ROWS, _BLOCK_ENTRIES.get(z.device.type, 2**24) // len(keys))
        with torch.autocast(z.device.type, enabled=False):
            operands = Operands.prepare(z.to(dtype), keys.to(dtype), gates.to(dtype), cosine)
            weight = weight.to(dtype)
            gradients = Gradients.zeros(z, keys, gates, temperature, dtype) if with_gradient else None
            total = torch.zeros((), dtype=dtype, device=z.device)
            block = _cosine_block if cosine else _masked_dot_block
            for start in range(0, len(z), rows):
                part = slice(start, start + rows)
                total += block(operands, part, labelling.masks(part), inverse_temperature, gradients)
            if gradients is not None:
                if not cosine:  # these are gradients in unit vectors
                    gradients = gradients._replace(
                        z=tangent(gradients.z, operands.z), keys=tangent(gradients.keys, operands.keys)
                    )
                gradients.z.mul_(operands.z_scale * weight)
                gradients.keys.mul_(operands.keys_scale * weight)
                gradients.gates.mul_(operands.gates_scale * weight)
                if gradients.temperature is not None:
                    gradients.temperature.mul_(-inverse_temperature * weight)
                ctx.save_for_backward(*gradients)
                ctx.inputs = [(x.dtype, x.device) for x in (z, keys, gates, temperature) if isinstance(x, Tensor)]
            return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, (dtype, device) in enumerate(ctx.inputs):
            if ctx.needs_input_grad[i]:
                scaled[i] = (ctx.saved_tensors[i] * grad_output).to(device, dtype)
        return tuple(scaled)


def _nce(
    similarities: Tensor, masks: tuple[Tensor, Tensor], inverse_temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The block's sum over positives (docs/method.md, step 5), and its gradient in the similarities [b, N]."""
    not_positive, not_negative = masks
    negatives = (similarities * inverse_temperature).masked_fill_(not_negative, -math.inf)  # [b, N]
    largest = negatives.amax(dim=1, keepdim=True)  # [b, 1]
    largest = largest.masked_fill(largest == -math.inf, 0.0)  # no negatives
    mass = negatives.sub_(largest).exp_().sum(dim=1, keepdim=True)  # [b, 1]
    of_negatives = largest + mass.log()  # LSE_i [b, 1]
    if isinstance(inverse_temperature, Tensor):
        margin = torch.addcmul(of_negatives, similarities, inverse_temperature, value=-1)  # LSE_i - l_ij [b, N]
    else:
        margin = torch.sub(of_negatives, similarities, alpha=inverse_temperature)
    margin.masked_fill_(not_positive, -math.inf)
    total = F.softplus(margin, threshold=80.0).sum()  # the default threshold of 20 shows in float64
    a = margin.sigmoid_()  # [b, N], zero off the positives
    share = (a.sum(dim=1, keepdim=True) / mass).masked_fill_(mass == 0, 0.0)
    return total, negatives.mul_(share).sub_(a).mul_(inverse_temperature)


def _cosine_block(
    operands: Operands,
    part: slice,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float | Tensor,
    gradients: Gradients | None,
) -> Tensor:
    """The anchors `part` with `similarity: cosine`: returns their sum, adds to the gradients."""
    assert operands.squared_keys is not None
    z, keys, gates = operands.z[part], operands.keys, operands.gates[part]
    # Gate and anchor may be large in different places, so once more. What is zero here and below leaves room for the
    # product of both inverses: with rows of unit size, float32 still tells apart norms over 14 orders of magnitude.
    q, q_scale = unit_max(gates * z, power=0.5)
    q, q_norm_scale = unit_norm(q)  # [b, D]
    u, squared_gates = gates * q, gates.square()
    inverse = squared_gates @ operands.squared_keys.T  # |g_i k_j|^2 [b, N]
    dead = inverse < torch.finfo(inverse.dtype).tiny ** 0.75
    inverse.rsqrt_().masked_fill_(dead, 0.0)
    cosines = (u @ keys.T).mul_(inverse)
    total, grad = _nce(cosines, masks, inverse_temperature)
    if gradients is None:
        return total
    gradients.add_to_temperature(cosines, grad)
    grad.mul_(inverse)  # in u_i k_j
    by_square = cosines.mul_(grad).mul_(inverse)  # in |g_i k_j|^2, times -2
    grad_u = grad @ keys
    grad_q = grad_u * gates
    grad_q = tangent(grad_q, q) * (q_scale * q_norm_scale)
    gradients.z[part] = grad_q * gates
    gradients.gates[part] = grad_u * q + grad_q * z - gates * (by_square @ operands.squared_keys)
    gradients.keys.addmm_(grad.T, u).sub_((by_square.T @ squared_gates).mul_(keys))
    return total


def _masked_dot_block(
    operands: Operands,
    part: slice,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float | Tensor,
    gradients: Gradients | None,
) -> Tensor:
    """The anchors `part` with `similarity: masked_dot`: returns their sum, adds to the gradients."""
    z, keys, gates = operands.z[part], operands.keys, operands.gates[part]
    squared_gates = gates.square()
    u = squared_gates * z
    similarities = u @ keys.T
    total, grad = _nce(similarities, masks, inverse_temperature)
    if gradients is None:
        return total
    gradients.add_to_temperature(similarities, grad)
    grad_u = grad @ keys
    gradients.z[part] = grad_u * squared_gates
    gradients.gates[part] = 2.0 * gates * z * grad_u
    gradients.keys.addmm_(grad.T, u)
    return total
