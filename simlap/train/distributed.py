"""Data parallelism that computes what one process would: gathering with gradient, and batch norm over the global batch.

W workers; worker r holds rows r::W of the global batch, so that row counts differ by at most one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from simlap.comm import gather, sum_rows, sum_vector
from simlap.comm.host import Vector, of_host

_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else {"broadcast_buffers": False}  # its name before torch 2.15
)
"""Synchronised batch norm keeps the running statistics equal; DDP need not send them."""


def data_parallel(module: nn.Module) -> nn.Module:
    """What to call instead of the module so that all workers have the mean of their gradients after the backward pass.

    To be used after `convert_sync_batchnorm`. The module itself where workers meet in shared memory: nothing is gained there
    by sending gradients during the backward pass, and they are averaged after it (`simlap.train.accumulate`).
    """
    start_alike(module)
    if not next(module.parameters()).is_cuda and of_host() is not None:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **_NO_BUFFER_SYNC)


@torch.no_grad()
def start_alike(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Everyone takes the first worker's parameters and buffers, whatever a plugin has drawn without a key."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in module.state_dict().values():
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for tensors in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.broadcast(flat, group_src=0, group=group)
        for tensor, of_first in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(of_first.view_as(tensor))


# --- gathering -------------------------------------------------------------------------------------------------------


def all_gather_with_gradient(
    x: Tensor, group: dist.ProcessGroup | None = None, sizes: Sequence[int] | None = None
) -> Tensor:
    """The rows of all workers in rank order: [b, ...] here, [B, ...] everywhere.

    Backward sums the gradient over workers, in float32 at least, and returns this worker's rows, so every worker must
    run it; every worker receives the gradient of its own rows only. Integers (labels) are gathered too, without gradient.
    Without several processes, x itself.

    Args:
        x: this worker's rows. Numbers of rows may differ between workers; all else must not.
        group: process group; default: all.
        sizes: the workers' numbers of rows, where they are known: then nobody asks for them, which would wait for the
            device.
    """
    if _world_size(group) == 1:
        return x
    gathered: Tensor = _AllGather.apply(x, group, sizes)
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, sizes: Sequence[int] | None) -> Tensor:
        rank = dist.get_rank(group)
        rows = _sizes(x, group) if sizes is None else [*sizes]
        if len(rows) != dist.get_world_size(group) or rows[rank] != len(x):
            raise ValueError(
                f"sizes {rows} do not fit worker {rank} of {dist.get_world_size(group)} with {len(x)} rows"
            )
        # collectives want equal shapes: short workers send a row of padding that is cut off again
        most = max(rows)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x
        result = gather(padded, group)
        if min(rows) < most:
            result = torch.cat([part[:n] for part, n in zip(result.split(most), rows, strict=True)])
        ctx.group, ctx.rows = group, rows
        if not x.is_floating_point():
            ctx.mark_non_differentiable(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return sum_rows(grad, ctx.rows, ctx.group), None, None


def _sizes(x: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each worker has."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device), group=group)
    rows: list[int] = torch.cat(sizes).tolist()
    return rows


def _world_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


# --- batch norm over the global batch --------------------------------------------------------------------------------


def convert_sync_batchnorm(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replaces every BatchNorm1d/2d/3d (and timm's BatchNormAct2d) in `module` by one with statistics over all workers.

    On CUDA torch's SyncBatchNorm (through timm's conversion, which knows its own classes), else the one below.
    Parameters and buffers are the same tensors under the same names, so optimisers and state dicts do not notice. Call
    it after moving to the device.

    Args:
        module: converted in place, children at any depth; a module that is itself a batch norm is not changed but
            replaced.
        group: process group; default: all.

    Returns:
        `module`, or its replacement.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if tensors and tensors[0].is_cuda:
        from timm.layers.norm_act import convert_sync_batchnorm as convert_for_cuda  # takes seconds to import

        on_cuda: nn.Module = convert_for_cuda(module, group)
        return on_cuda
    return _convert(module, group, {})


def _convert(module: nn.Module, group: dist.ProcessGroup | None, converted: dict[int, nn.Module]) -> nn.Module:
    """`converted`: replacements by the id of what they replace, for modules that are used in several places."""
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
        # a subclass we do not know may do more than normalise; leaving it alone would be silently wrong
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and not _is_norm_act(module):
            raise TypeError(f"no conversion to synchronised batch norm known for {type(module).__qualname__}")
        return converted.setdefault(id(module), SyncBatchNorm(module, group))
    for name, child in [*module._modules.items()]:  # named_children would leave out the second name of a shared module
        if child is not None:
            setattr(module, name, _convert(child, group, converted))
    return module


def _is_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d, answered without importing timm."""
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


class SyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of the global batch, on a CPU and in any floating-point type; torch's is for GPUs.

    Without several processes it is torch's batch norm, bit for bit.

    Args:
        source: the batch norm to stand in for; its parameters and buffers are shared. `drop` and `act` of timm's
            BatchNormAct2d are taken over.
        group: process group; default: all.
    """

    def __init__(self, source: _BatchNorm, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.train(source.training)
        self.group = group
        self.drop: nn.Module = getattr(source, "drop", nn.Identity())
        self.act: nn.Module = getattr(source, "act", nn.Identity())
        self._more = not all(type(module) is nn.Identity for module in (self.drop, self.act))

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [b, C, ...], got {[*input.shape]}")

    def forward(self, input: Tensor) -> Tensor:
        """[b, C, ...] -> the same shape."""
        synchronised = self.training and _world_size(self.group) > 1
        if not synchronised:
            out = super().forward(input)
        else:
            out = self._synchronised_apart(input) if torch.compiler.is_compiling() else self._synchronised(input)
        return self.act(self.drop(out)) if self._more else out

    def _synchronised(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        out: Tensor = _Normalise.apply(input, self.weight, self.bias, self)
        return out

    _synchronised_apart = torch.compiler.disable(_synchronised)

    def update_statistics(self, mean: Vector, variance: Vector, count: float) -> None:
        """Running statistics by a step's mean and biased variance [C]; where they are kept."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            kept = running.numpy()
            kept += momentum * (now - kept)


class _Normalise(torch.autograd.Function):
    """The normalised input; the module's running statistics are updated.

    What goes through the activations is one of torch's kernels each. What is done with the [C] vectors is numpy's: there it is
    the number of operations that takes the time, and one of torch's takes five times as long as one of numpy's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: SyncBatchNorm) -> Tensor:
        wide = x if x.dtype in _NUMPY else x.float()
        channels = x.shape[1]
        count = x.numel() // channels
        # Sum and square sum lose the variance of features far from 0 if added up in float32. The local moments come
        # from torch's two-pass kernel, and only these [C] vectors become float64 sums: stable, and no wide copy of the
        # activations.
        sums = np.zeros(2 * channels + 1)
        mean, square = sums[:channels], sums[channels:-1]
        if count:  # torch's kernel divides by it
            of_mean, of_variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
            mean[:] = of_mean.numpy()
            np.multiply(mean, mean, out=square)
            square += of_variance.numpy()
            sums[-1] = 1.0
            sums *= count
        sums = sum_vector(sums, norm.group)
        total = float(sums[-1])
        if total <= 1:
            raise ValueError(f"expected more than 1 value per channel over all workers, got input {[*x.shape]}")
        sums /= total
        mean, square = sums[:channels], sums[channels:-1]
        variance = np.maximum(square - mean * mean, 0.0)
        inverse_std = 1.0 / np.sqrt(variance + norm.eps)
        gain = inverse_std if weight is None else inverse_std * _array(weight)
        shift = mean * -gain
        if bias is not None:
            shift += _array(bias)
        norm.update_statistics(mean, variance, total)
        offset, slope = _per_channel(wide, shift, gain)
        out = torch.addcmul(offset, wide, slope)
        ctx.save_for_backward(x)
        ctx.group, ctx.eps, ctx.total, ctx.dtype = norm.group, norm.eps, total, None if weight is None else weight.dtype
        ctx.mean, ctx.variance, ctx.inverse_std, ctx.gain = mean, variance, inverse_std, gain
        return out if wide is x else out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        wide, of_wide = (v if v.dtype in _NUMPY else v.float() for v in (x, grad))
        channels = x.shape[1]
        # sums of the gradient, and of its product with the normalised input, [C] each
        sums = np.zeros(2 * channels)
        if x.numel():
            moments = torch.from_numpy(np.array((ctx.mean, ctx.variance), dtype=_NUMPY[wide.dtype])).unbind()
            _, by_weight, by_bias = _of_parameters(
                of_wide, wide, None, *moments, None, None, False, ctx.eps, [False, True, True]
            )
            sums[:channels], sums[channels:] = by_bias.numpy(), by_weight.numpy()
        else:
            by_weight = by_bias = wide.new_zeros(channels)
        # the workers' gradients of the parameters are added up later; here only what reaches the input goes through the group
        sums = sum_vector(sums, ctx.group)
        sums /= ctx.total
        # gain x (gradient - its mean - normalised input x the mean of that product)
        slope = ctx.gain * ctx.inverse_std
        slope *= sums[channels:]
        offset = slope * ctx.mean - ctx.gain * sums[:channels]
        grad_x = _combined(wide, of_wide, *_per_channel(wide, offset, -slope, ctx.gain))
        if wide is not x:
            grad_x = grad_x.to(x.dtype)
        if ctx.dtype is None:
            return grad_x, None, None, None
        return grad_x, by_weight.to(ctx.dtype), by_bias.to(ctx.dtype), None


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
"""What the arithmetic is done in, by what it is of; all else in float32."""
_of_parameters = torch.ops.aten.native_batch_norm_backward.default
_CACHED = 2**17
"""Numbers of float32, three times as many of which stay in a core's cache."""


def _array(parameter: Tensor) -> np.ndarray[tuple[int], Any]:
    """[C], of a type that numpy has."""
    detached = parameter.detach()
    found: np.ndarray[tuple[int], Any] = (detached if parameter.dtype in _NUMPY else detached.float()).numpy()
    return found


def _per_channel(x: Tensor, *vectors: Vector) -> tuple[Tensor, ...]:
    """[C] -> [1, C, 1, ...] each, of x's dtype."""
    together = torch.from_numpy(np.array(vectors, dtype=_NUMPY[x.dtype]))
    return together.view(len(vectors), 1, x.shape[1], *[1] * (x.ndim - 2)).unbind()


def _combined(x: Tensor, grad: Tensor, offset: Tensor, slope: Tensor, gain: Tensor) -> Tensor:
    """offset + slope x + gain grad, [b, C, ...]; so many rows at a time that what is written stays in a core's cache."""
    if x.numel() <= _CACHED:
        return torch.addcmul(offset, x, slope).addcmul_(grad, gain)
    out = torch.empty_like(x)
    rows = max(1, _CACHED * len(x) // x.numel())
    for of_out, of_x, of_grad in zip(out.split(rows), x.split(rows), grad.split(rows), strict=True):
        torch.addcmul(offset, of_x, slope, out=of_out).addcmul_(of_grad, gain)
    return out
