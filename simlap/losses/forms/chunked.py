"""Value and gradients together, block of anchors by block of anchors: memory that grows with the number of keys.

Shapes: B anchors, N keys, D embedding width, b anchors of one block, u gates of one block.

The gradient is known in closed form. With LSE_i the log-sum-exp of anchor i's negative logits, n the number of positives and
a_ij = sigmoid(LSE_i - l_ij):

    loss = sum over positives of softplus(LSE_i - l_ij) / n
    d loss / d l_ij = -a_ij / n                                     at positives
    d loss / d l_ik = (sum_j a_ij) exp(l_ik - LSE_i) / n            at negatives
    d loss / d temperature = -sum of (d loss / d l) l / temperature

The norms |g k_j| are those of a class pair's gate g. Where anchors share gates they are made once per gate, and so are the
two products of their gradient, from sums over the anchors of each gate: of six products of B x N x D three are left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simlap.losses.forms.blocks import Block, Buffers, block_rows, blocks
from simlap.losses.forms.problem import (
    FAR_BELOW,
    Operands,
    Problem,
    inverse_norms,
    without_autocast,
)
from simlap.losses.unit import tangent


def chunked(problem: Problem) -> Tensor:
    """The loss, a scalar."""
    loss: Tensor = _Chunked.apply(problem.z, problem.keys, problem.gates, problem.temperature, problem, problem.learns)
    return loss


class _Chunked(torch.autograd.Function):
    """Value and gradients in one go; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        keys: Tensor,
        gates: Tensor,
        temperature: float | Tensor,
        problem: Problem,
        learns: bool,
    ) -> Tensor:
        with without_autocast(z.device):
            loss, sums, scale = _run(problem, learns)
        if learns:
            ctx.save_for_backward(sums.rows, scale, sums.temperature)
            inputs = (z, keys, gates, temperature)
            ctx.inputs = [(x.shape[0] if x.ndim else 0, x.dtype, x.device) for x in inputs if isinstance(x, Tensor)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, scale, of_temperature = ctx.saved_tensors
        found = [*torch.split_with_sizes(of_rows * (scale * grad_output), [rows for rows, _, _ in ctx.inputs[:3]])]
        if of_temperature is not None:
            found.append(of_temperature * grad_output)
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, (gradient, (_, dtype, device)) in enumerate(zip(found, ctx.inputs, strict=True)):
            if ctx.needs_input_grad[i]:
                result[i] = gradient.to(device, dtype)
        return tuple(result)


def _run(problem: Problem, learns: bool) -> tuple[Tensor, _Sums, Tensor]:
    """The loss and its gradients, block by block; those in z, keys and gates still to be scaled, by [B + N + U, 1]."""
    dtype, device, temperature = problem.dtype, problem.z.device, problem.temperature
    inverse = 1.0 / (temperature.to(device, dtype) if isinstance(temperature, Tensor) else temperature)
    order = None
    if problem.gate_index is not None:
        problem, order = problem.sorted()  # then a block has few gates
    operands = Operands.prepare(problem)
    problem = problem._replace(z=operands.z)  # lets the sorted copy go
    squared_keys = operands.keys * operands.keys if problem.cosine else None  # faster than square() where rows are few
    sums = _Sums.zeros(operands, problem, learns)
    loss = weight = None
    for block in blocks(problem):
        masks = problem.masks(dtype, block.part, out=block.buffers[:2])
        if block.part is None:
            weight = problem.normaliser(masks[0]).to(dtype)
        if squared_keys is not None:
            of_block = _cosine_block(operands, squared_keys, block, masks, inverse, sums)
        else:
            of_block = _masked_dot_block(operands, block, masks, inverse, sums)
        # in place: small tensors that outlive a block would lie between its large buffers, and the heap would grow
        loss = of_block if loss is None else loss.add_(of_block)
    weight = problem.normaliser().to(dtype) if weight is None else weight
    loss = weight.new_zeros(()) if loss is None else loss.mul_(weight)
    scale = operands.scale * weight
    if not learns:
        return loss, sums, scale
    if problem.cosine:
        sums.keys.addcmul_(sums.key_norms, operands.keys, value=-1.0)
    else:  # these are gradients in unit vectors
        for gradient, unit in ((sums.z, operands.z), (sums.keys, operands.keys)):
            gradient.copy_(tangent(gradient, unit))
    if order is not None:
        sums.z[order] = sums.z.clone()
        scale[order] = scale[: len(order)].clone()
    if sums.temperature is not None:
        sums.temperature.mul_(-inverse * weight)
    return loss, sums, scale


class _Sums(NamedTuple):
    """What the blocks add to: the gradients in the operands, without `weight`. Empty where not wanted."""

    rows: Tensor  # [B + N + U, D], the next three
    z: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    gates: Tensor  # [U, D]
    key_norms: Tensor  # [N, D], for the cosine: times -k this is the part of `keys` that comes from |g k|
    temperature: Tensor | None  # scalar, still to be divided by -temperature; where it is learnt

    @classmethod
    def zeros(cls, operands: Operands, problem: Problem, learns: bool) -> _Sums:
        z = operands.z
        sizes = [x.shape[0] if learns else 0 for x in operands[:3]]
        # a single block of anchors with a gate each writes to all of it
        new = z.new_empty if problem.gate_index is None and 0 < len(z) <= block_rows(problem) else z.new_zeros
        rows = new(sum(sizes), z.shape[1])
        of_z, of_keys, of_gates = torch.split_with_sizes(rows, sizes)
        key_norms = new(sizes[1] if problem.cosine else 0, z.shape[1])
        temperature = z.new_zeros(()) if learns and isinstance(problem.temperature, Tensor) else None
        return cls(rows, of_z, of_keys, of_gates, key_norms, temperature)

    @property
    def wanted(self) -> bool:
        """Whether gradients are."""
        return len(self.rows) > 0


def _nce(logits: Tensor, masks: tuple[Tensor, Tensor], buffers: Buffers) -> tuple[Tensor, Tensor]:
    """The block's sum over positives (docs/method.md, step 5), and its gradient in the logits [b, N]."""
    positive, excluded = masks
    negatives = torch.sub(logits, excluded, alpha=FAR_BELOW, out=excluded)  # [b, N]
    largest = negatives.amax(dim=1, keepdim=True)  # [b, 1]
    shares = torch.softmax(negatives, dim=1, out=negatives)  # exp(l_ik - LSE_i) [b, N]
    of_negatives = largest.sub_(shares.amax(dim=1, keepdim=True).log_())  # LSE_i [b, 1]
    margin = torch.sub(of_negatives, logits, out=buffers.margin)  # LSE_i - l_ij [b, N]
    # the default threshold of 20 shows in float64
    loss = F.softplus(margin, threshold=80.0).flatten().dot(positive.flatten())
    a = margin.sigmoid_().mul_(positive)  # [b, N]
    return loss, shares.mul_(a.sum(dim=1, keepdim=True)).sub_(a)


def _cosine_block(
    operands: Operands,
    squared_keys: Tensor,
    block: Block,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float | Tensor,
    sums: _Sums,
) -> Tensor:
    """The loss of one block with `similarity: cosine`: l_ij = <g^2 z_i, k_j> / (|g z_i| |g k_j| temperature)."""
    z, keys, gates = block.anchors(operands.z), operands.keys, block.gates(operands.gates)
    squared = gates * gates  # [u, D]
    of_keys = torch.mm(squared, squared_keys.T, out=None if block.own is not None else block.buffers.of_keys)
    of_keys = inverse_norms(of_keys)  # 1 / |g k_j| [u, N]
    spread_of_keys, spread_squared = (
        block.spread(of_keys, block.buffers.of_keys),
        block.spread(squared),
    )  # [b, N], [b, D]
    u = spread_squared * z
    of_anchors = inverse_norms((u * z).sum(dim=1, keepdim=True))  # 1 / |g z_i| [b, 1]
    scale = of_anchors * inverse_temperature
    u.mul_(scale)
    logits = torch.mm(u, keys.T, out=block.buffers.logits).mul_(spread_of_keys)
    loss, grad = _nce(logits, masks, block.buffers)
    if not sums.wanted:
        return loss
    by_square = logits.mul_(grad)  # -2 times: by row in log |g z_i|^2, by column in log |g k_j|^2
    along = by_square.sum(dim=1, keepdim=True)  # [b, 1]
    if sums.temperature is not None:
        sums.temperature.add_(along.sum())
    by_square = block.collect(by_square).mul_(of_keys).mul_(of_keys)  # in |g k_j|^2, times -2 [u, N]
    grad.mul_(spread_of_keys)  # in <u_i, k_j>
    grad_u = (grad @ keys).mul_(scale)  # in g^2 z [b, D]
    across = torch.addcmul(grad_u, z, along * (of_anchors * of_anchors), value=-1.0)  # not |g z_i|
    torch.mul(across, spread_squared, out=block.anchors(sums.z))
    of_gates = block.collect(grad_u.add_(across).mul_(z))  # over g [u, D]
    block.add(sums.gates, gates, of_gates.addmm_(by_square, squared_keys, alpha=-1.0))
    block.add_product(sums.keys, grad.T, u)
    block.add_product(sums.key_norms, by_square.T, squared)
    return loss


def _masked_dot_block(
    operands: Operands,
    block: Block,
    masks: tuple[Tensor, Tensor],
    inverse_temperature: float | Tensor,
    sums: _Sums,
) -> Tensor:
    """The loss of one block with `similarity: masked_dot`."""
    z, keys, gates = block.anchors(operands.z), operands.keys, block.gates(operands.gates)
    squared = block.spread(gates.square() * inverse_temperature)  # [b, D]
    u = squared * z
    logits = torch.mm(u, keys.T, out=block.buffers.logits)
    loss, grad = _nce(logits, masks, block.buffers)
    if not sums.wanted:
        return loss
    if sums.temperature is not None:
        sums.temperature.add_((logits * grad).sum())
    grad_u = grad @ keys
    torch.mul(grad_u, squared, out=block.anchors(sums.z))
    block.add(sums.gates, gates, block.collect(grad_u.mul_(z).mul_(2.0 * inverse_temperature)))
    block.add_product(sums.keys, grad.T, u)
    return loss
