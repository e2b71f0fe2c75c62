"""InfoNCE in the subspace that a class pair's gate opens (arXiv 2410.18200; docs/method.md, steps 3 to 5).

Shapes: B anchors, N keys, D embedding width, b anchors of one block.

The subspace cosine needs no B x N x D tensor: c = ((g^2 z) K^T) / (|g z| sqrt(g^2 (K^2)^T)). The gradient is known in
closed form and is made together with the value, block of anchors by block of anchors, so that a few [b, N] buffers are
all the extra memory. With LSE_i the log-sum-exp of anchor i's negative logits, n the number of positives and
a_ij = sigmoid(LSE_i - l_ij):

    loss = sum over positives of softplus(LSE_i - l_ij) / n
    d loss / d l_ij = -a_ij / n                                     at positives
    d loss / d l_ik = (sum_j a_ij) exp(l_ik - LSE_i) / n            at negatives
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simlap.losses.arguments import Similarity, check_arguments

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
    temperature: float = 0.1,
    similarity: Similarity = "cosine",
    self_index: Tensor | None = None,
    num_positives: float | Tensor | None = None,
) -> Tensor:
    """The mean over positive pairs of log(e^l_ij + sum over negatives of e^l_ik) - l_ij.

    Positives of anchor i are the keys of its pair class, negatives the keys that are neither of its own nor of its pair
    class; all other keys are ignored. An anchor without positives contributes nothing; without any positive the loss is
    0 and its gradients are zeros. Zero vectors, in the subspace or altogether, have similarity 0 and gradient 0. The
    arithmetic is float32 (float64 if any input is), whatever autocast says; gradients come back in their input's dtype.
    First derivatives only.

    Args:
        z: [B, D] anchors.
        keys: [N, D] keys, gathered by the caller where there are several workers.
        gates: [B, D] each anchor's gate, in [0, 1].
        labels: [B] int, the anchors' classes y.
        pair_labels: [B] int, their pair classes p.
        key_labels: [N] int, the keys' classes.
        temperature: of the softmax; safe from 0.01 upwards.
        similarity: `cosine` (in the subspace) or `masked_dot` (gated dot product of the vectors normalised over all of
            R^D).
        self_index: [B] int64, each anchor's own column among the keys. Given, that column is no positive.
        num_positives: the normaliser where it is not the local number of positives: the global one under data
            parallelism.

    Returns:
        Scalar, float32 or float64.
    """
    check_arguments(z, keys, gates, labels, pair_labels, key_labels, temperature, similarity, self_index, num_positives)
    if num_positives is None:
        num_positives = count_positives(pair_labels, key_labels, self_index)
    count = torch.as_tensor(num_positives, device=z.device).detach().double()
    weight = torch.where(count > 0, 1.0 / count, 0.0)
    labelling = _Labelling(labels, pair_labels, key_labels, self_index)
    with_gradient = torch.is_grad_enabled() and (z.requires_grad or keys.requires_grad or gates.requires_grad)
    loss: Tensor = _SubspaceInfoNCE.apply(
        z, keys, gates, labelling, weight, 1.0 / temperature, similarity == "cosine", with_gradient
    )
    return loss


def count_positives(pair_labels: Tensor, key_labels: Tensor, self_index: Tensor | None = None) -> Tensor:
    """Number of (anchor, key) pairs with the key of the anchor's pair class; own columns left out with `self_index`.

    Args:
        pair_labels: [B] int.
        key_labels: [N] int.
        self_index: [B] int64 or None.

    Returns:
        Scalar int64 on the labels' device, without synchronising with it.
    """
    ordered = key_labels.sort().values  # [N]
    pairs = pair_labels.to(ordered.dtype).contiguous()
    count = (torch.searchsorted(ordered, pairs, right=True) - torch.searchsorted(ordered, pairs)).sum()
    if self_index is not None:
        count = count - (key_labels[self_index] == pair_labels).sum()
    return count


class _Labelling(NamedTuple):
    labels: Tensor  # [B]
    pair_labels: Tensor  # [B]
    key_labels: Tensor  # [N]
    self_index: Tensor | None  # [B]

    def masks(self, part: slice) -> tuple[Tensor, Tensor]:
        """`not_positive` and `not_negative` [b, N] of the anchors `part` (docs/method.md, step 4)."""
        not_positive = self.key_labels[None, :] != self.pair_labels[part, None]
        not_negative = (self.key_labels[None, :] == self.labels[part, None]).logical_or_(~not_positive)
        if self.self_index is not None:
            not_positive.scatter_(1, self.self_index[part, None], True)
        return not_positive, not_negative


class _Operands(NamedTuple):
    """Rows brought to unit size; `*_scale` [rows, 1] undoes that in the gradients (0 for zero rows)."""

    z: Tensor  # [B, D]
    z_scale: Tensor
    keys: Tensor  # [N, D]
    keys_scale: Tensor
    gates: Tensor  # [B, D]
    gates_scale: Tensor | float
    squared_keys: Tensor | None  # [N, D], for the cosine

    @classmethod
    def prepare(cls, z: Tensor, keys: Tensor, gates: Tensor, cosine: bool) -> _Operands:
        """Rows are divided by their largest entry, so that no square over- or underflows: cosines do not notice.

        The gates of `masked_dot` stay as they are: there their size counts.
        """
        z, z_scale = _unit_max(z)
        keys, keys_scale = _unit_max(keys)
        if cosine:
            return cls(z, z_scale, keys, keys_scale, *_unit_max(gates), keys.square())
        z, z_norm_scale = _unit_norm(z)
        keys, keys_norm_scale = _unit_norm(keys)
        return cls(z, z_scale * z_norm_scale, keys, keys_scale * keys_norm_scale, gates, 1.0, None)


class _Gradients(NamedTuple):
    z: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    gates: Tensor  # [B, D]

    @classmethod
    def zeros(cls, z: Tensor, keys: Tensor, gates: Tensor, dtype: torch.dtype) -> _Gradients:
        return cls(*(torch.zeros_like(x, dtype=dtype) for x in (z, keys, gates)))


class _SubspaceInfoNCE(torch.autograd.Function):
    """Value and gradients in one go; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        keys: Tensor,
        gates: Tensor,
        labelling: _Labelling,
        weight: Tensor,
        inverse_temperature: float,
        cosine: bool,
        with_gradient: bool,
    ) -> Tensor:
        ctx.dtypes = (z.dtype, keys.dtype, gates.dtype)
        dtype = torch.float64 if torch.float64 in ctx.dtypes else torch.float32
        rows = max(_BLOCK_ROWS, _BLOCK_ENTRIES.get(z.device.type, 2**24) // len(keys))
        with torch.autocast(z.device.type, enabled=False):
            operands = _Operands.prepare(z.to(dtype), keys.to(dtype), gates.to(dtype), cosine)
            weight = weight.to(dtype)
            gradients = _Gradients.zeros(z, keys, gates, dtype) if with_gradient else None
            total = torch.zeros((), dtype=dtype, device=z.device)
            block = _cosine_block if cosine else _masked_dot_block
            for start in range(0, len(z), rows):
                part = slice(start, start + rows)
                total += block(operands, part, labelling.masks(part), inverse_temperature, gradients)
            if gradients is not None:
                if not cosine:  # these are gradients in unit vectors
                    gradients = gradients._replace(
                        z=_tangent(gradients.z, operands.z), keys=_tangent(gradients.keys, operands.keys)
                    )
                gradients.z.mul_(operands.z_scale * weight)
                gradients.keys.mul_(operands.keys_scale * weight)
                gradients.gates.mul_(operands.gates_scale * weight)
                ctx.save_for_backward(*gradients)
            return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            (gradient * grad_output).to(dtype) if needed else None
            for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        ]
        return (*scaled, None, None, None, None, None)


def _unit_max(x: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows over their largest magnitude, and its inverse [rows, 1]; zero for rows below (smallest normal)^power."""
    largest = x.abs().amax(dim=1, keepdim=True)
    dead = largest < torch.finfo(x.dtype).tiny ** power  # false for NaN, which stays NaN
    divisor = largest.masked_fill(dead, 1.0)
    return (x / divisor).masked_fill_(dead, 0.0), divisor.reciprocal().masked_fill_(dead, 0.0)


def _unit_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their Euclidean norm, and its inverse [rows, 1]; zero for zero rows. For rows of unit size."""
    norm = x.norm(dim=1, keepdim=True)
    dead = norm == 0
    divisor = norm.masked_fill(dead, 1.0)
    return x / divisor, divisor.reciprocal().masked_fill_(dead, 0.0)


def _tangent(gradient: Tensor, unit: Tensor) -> Tensor:
    """The part of each row's gradient that turns the unit vector: the gradient in x of f(x / |x|), times |x|."""
    return gradient - unit * (gradient * unit).sum(dim=1, keepdim=True)


def _nce(similarities: Tensor, masks: tuple[Tensor, Tensor], inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """The block's sum over positives (docs/method.md, step 5), and its gradient in the similarities [b, N]."""
    not_positive, not_negative = masks
    negatives = (similarities * inverse_temperature).masked_fill_(not_negative, -math.inf)  # [b, N]
    largest = negatives.amax(dim=1, keepdim=True)  # [b, 1]
    largest = largest.masked_fill(largest == -math.inf, 0.0)  # no negatives
    mass = negatives.sub_(largest).exp_().sum(dim=1, keepdim=True)  # [b, 1]
    margin = torch.sub(largest + mass.log(), similarities, alpha=inverse_temperature)  # LSE_i - l_ij [b, N]
    margin.masked_fill_(not_positive, -math.inf)
    total = F.softplus(margin, threshold=80.0).sum()  # the default threshold of 20 shows in float64
    a = margin.sigmoid_()  # [b, N], zero off the positives
    share = (a.sum(dim=1, keepdim=True) / mass).masked_fill_(mass == 0, 0.0)
    return total, negatives.mul_(share).sub_(a).mul_(inverse_temperature)


def _cosine_block(
    operands: _Operands,
    part: slice,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float,
    gradients: _Gradients | None,
) -> Tensor:
    """The anchors `part` with `similarity: cosine`: returns their sum, adds to the gradients."""
    assert operands.squared_keys is not None
    z, keys, gates = operands.z[part], operands.keys, operands.gates[part]
    # Gate and anchor may be large in different places, so once more. What is zero here and below leaves room for the
    # product of both inverses: with rows of unit size, float32 still tells apart norms over 14 orders of magnitude.
    q, q_scale = _unit_max(gates * z, power=0.5)
    q, q_norm_scale = _unit_norm(q)  # [b, D]
    u, squared_gates = gates * q, gates.square()
    inverse = squared_gates @ operands.squared_keys.T  # |g_i k_j|^2 [b, N]
    dead = inverse < torch.finfo(inverse.dtype).tiny ** 0.75
    inverse.rsqrt_().masked_fill_(dead, 0.0)
    cosines = (u @ keys.T).mul_(inverse)
    total, grad = _nce(cosines, masks, inverse_temperature)
    if gradients is None:
        return total
    grad.mul_(inverse)  # in u_i k_j
    by_square = cosines.mul_(grad).mul_(inverse)  # in |g_i k_j|^2, times -2
    grad_u = grad @ keys
    grad_q = grad_u * gates
    grad_q = _tangent(grad_q, q) * (q_scale * q_norm_scale)
    gradients.z[part] = grad_q * gates
    gradients.gates[part] = grad_u * q + grad_q * z - gates * (by_square @ operands.squared_keys)
    gradients.keys.addmm_(grad.T, u).sub_((by_square.T @ squared_gates).mul_(keys))
    return total


def _masked_dot_block(
    operands: _Operands,
    part: slice,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float,
    gradients: _Gradients | None,
) -> Tensor:
    """The anchors `part` with `similarity: masked_dot`: returns their sum, adds to the gradients."""
    z, keys, gates = operands.z[part], operands.keys, operands.gates[part]
    squared_gates = gates.square()
    u = squared_gates * z
    total, grad = _nce(u @ keys.T, masks, inverse_temperature)
    if gradients is None:
        return total
    grad_u = grad @ keys
    gradients.z[part] = grad_u * squared_gates
    gradients.gates[part] = 2.0 * gates * z * grad_u
    gradients.keys.addmm_(grad.T, u)
    return total
