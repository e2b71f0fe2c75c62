"""Batch norm of rows that stand for several equal ones: what torch's gives for the repeated rows, at the cost of the distinct.

Shapes: U rows, E features, n repeated rows of this worker.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from simlap.comm import sum_over_workers


def weighted_batch_norm(norm: _BatchNorm, x: Tensor, counts: Tensor, size: int) -> Tensor:
    """What `norm` does to x if row u were there `counts[u]` times, as U rows.

    Output, running statistics and gradients are those of the repeated rows, the gradient in an output row being the sum
    over its repetitions. In training mode the statistics are over the batch, or all workers' batches where `norm` is
    synchronised (torch's SyncBatchNorm or `simlap.train.distributed`'s): workers may then differ in U and n.

    Args:
        norm: batch norm over rows; its running statistics are brought up to date.
        x: [U, E].
        counts: [U] int, not negative.
        size: n, their sum, which the device need not be asked for.

    Returns:
        [U, E], of x's dtype.

    Raises:
        ValueError: one row in all: its variance is not known.
    """
    if not (norm.training or norm.running_mean is None):
        evaluated: Tensor = norm(x)
        return evaluated
    group = _group(norm)
    if group is None and size <= 1:
        raise ValueError(f"expected more than 1 row in training mode, got {size}")
    weights = counts.to(torch.promote_types(x.dtype, torch.float32))[:, None]  # [U, 1]
    out: Tensor
    out, mean, variance, total = _Normalise.apply(x, weights, size, norm.weight, norm.bias, norm.eps, group)
    if norm.training and norm.running_mean is not None:
        _update(norm, mean, variance, total)
    return out


def _group(norm: _BatchNorm) -> dist.ProcessGroup | None:
    """The workers that share the statistics, None where there is but one."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if isinstance(norm, nn.SyncBatchNorm):
        named: Any = norm.process_group
    elif hasattr(norm, "group"):  # simlap.train.distributed's
        named = norm.group
    else:
        return None
    group: Any = named or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


@torch.no_grad()
def _update(norm: _BatchNorm, mean: Tensor, variance: Tensor, total: Tensor | int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    unbiased = variance * (total / (total - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var), momentum)


class _Normalise(torch.autograd.Function):
    """Returns the normalised rows, and (no gradient) the mean, the biased variance [E] and the number of rows of all."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        size: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | int]:
        wide = x.to(weights.dtype)
        share = weights / max(size, 1)
        mean = (share * wide).sum(0)  # [E]
        variance = (share * (wide - mean).square()).sum(0)
        total: Tensor | int = size
        if group is not None:
            mean, variance, total = _of_all(mean, variance, size, group)
        inverse_std = (variance + eps).rsqrt().to(wide)
        normalised = (wide - mean.to(wide)) * inverse_std
        out = normalised if weight is None else normalised * weight
        out = out if bias is None else out + bias
        if isinstance(total, Tensor):
            ctx.mark_non_differentiable(mean, variance, total)
        else:
            ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(normalised, weights, weight, inverse_std)
        ctx.total, ctx.group, ctx.dtype = total, group, x.dtype
        return out.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normalised, weights, weight, inverse_std = ctx.saved_tensors
        wide = grad.to(normalised.dtype)
        by_bias = wide.sum(0)  # [E]
        by_weight = (wide * normalised).sum(0)
        mean_grad, mean_product = by_bias, by_weight
        if ctx.group is not None:
            # the data-parallel wrapper adds up the parameters' gradients; only what reaches x goes through the group
            sums = sum_over_workers(torch.cat([by_bias, by_weight]).double(), ctx.group)
            mean_grad, mean_product = sums.to(wide).chunk(2)
        gain = inverse_std if weight is None else inverse_std * weight
        off = torch.addcmul(mean_grad, normalised, mean_product)  # [U, E]
        grad_x = ((wide - off * (weights / ctx.total)) * gain).to(ctx.dtype)
        if weight is None:
            return grad_x, None, None, None, None, None, None
        return grad_x, None, None, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None


def _of_all(mean: Tensor, variance: Tensor, size: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of all workers' rows from each one's, float64 as in `simlap.train.distributed.SyncBatchNorm`, and their number."""
    mean, variance = mean.double(), variance.double()
    sums = torch.cat([size * mean, size * (variance + mean.square()), mean.new_full((1,), size)])
    sums = sum_over_workers(sums, group)
    total = sums[-1]
    if total.device.type == "cpu" and total <= 1:
        raise ValueError(f"expected more than 1 row over all workers in training mode, got {int(total)}")
    mean, square = (sums[:-1] / total).chunk(2)
    return mean, (square - mean.square()).clamp_(min=0.0), total
