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
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from simlap.comm import average_, gather, sum_over_workers, sum_rows
from simlap.comm.host import of_host

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else {"broadcast_buffers": False}  # its name before torch 2.15
)
"""Synchronised batch norm keeps the running statistics equal; DDP need not send them."""


def data_parallel(module: nn.Module) -> DistributedDataParallel:
    """The wrapper that averages gradients over all workers, to be used after `convert_sync_batchnorm`."""
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **_NO_BUFFER_SYNC)
    if not next(module.parameters()).is_cuda and of_host() is not None:
        # a function with annotations would have to be annotated by classes, not by their names
        wrapped.register_comm_hook(None, lambda _, bucket: _average(bucket.buffer()))
    return wrapped


def _average(gradients: Tensor) -> torch.futures.Future[Tensor]:
    average_(gradients)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


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

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [b, C, ...], got {[*input.shape]}")

    def forward(self, input: Tensor) -> Tensor:
        """[b, C, ...] -> the same shape."""
        synchronised = self.training and _world_size(self.group) > 1
        activated: Tensor = self.act(self.drop(self._synchronised(input) if synchronised else super().forward(input)))
        return activated

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _synchronised(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        out: Tensor
        out, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats:
            self._update_statistics(mean, variance, count)
        return out

    def _update_statistics(self, mean: Vector, variance: Vector, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            kept = running.numpy()
            kept += (momentum * (now - kept)).astype(kept.dtype)


class _Normalise(torch.autograd.Function):
    """Returns the normalised input, the global mean and biased variance [C] in float64, and the global count.

    What goes through the activations is torch's own kernels: plain arithmetic on them takes four times as long. What is done
    with the [C] vectors is numpy's: there it is the number of operations that takes the time, and one of torch's takes five
    times as long as one of numpy's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Vector, Vector, float]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels, count = x.shape[1], x.numel() // x.shape[1]
        # Sum and square sum lose the variance of features far from 0 if added up in float32. The local moments come
        # from torch's two-pass kernel, and only these [C] vectors become float64 sums: stable, and no wide copy of the
        # activations.
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64)
        vector = sums.numpy()
        if count:  # torch's kernels divide by it
            mean, variance = (m.numpy() for m in torch.batch_norm_update_stats(wide, None, None, 0.0))
            vector[:channels] = mean
            vector[channels:-1] = variance
            vector[channels:-1] += vector[:channels] ** 2
            vector[-1] = 1.0
            vector *= count
        vector = sum_over_workers(sums, group).numpy()
        total = float(vector[-1])
        if total <= 1:
            raise ValueError(f"expected more than 1 value per channel over all workers, got input {[*x.shape]}")
        vector /= total
        mean, square = vector[:channels], vector[channels:-1]
        variance = np.maximum(square - mean**2, 0.0)
        local_mean, local_variance = (torch.from_numpy(v).to(wide.dtype) for v in (mean, variance))
        gain = None if weight is None else weight.to(wide)
        shift = None if bias is None else bias.to(wide)
        out = F.batch_norm(wide, local_mean, local_variance, gain, shift, training=False, eps=eps).to(x.dtype)
        ctx.save_for_backward(x, weight, local_mean, local_variance)
        ctx.group, ctx.eps, ctx.total = group, eps, total
        return out, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        wide, grad_wide, eps, channels = x.to(mean), grad.to(mean), ctx.eps, x.shape[1]
        # sums of the gradient, and of its product with the normalised input, [C] each
        by_weight, by_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():
            _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                grad_wide, wide, None, mean, variance, None, None, False, eps, [False, True, True]
            )
        # the wrapper adds up the parameters' gradients over workers; here only what reaches the input goes through the
        # group
        sums = torch.empty(2 * channels, dtype=torch.float64)
        vector = sums.numpy()
        vector[:channels], vector[channels:] = by_bias.numpy(), by_weight.numpy()
        vector = sum_over_workers(sums, ctx.group).numpy()
        gain = (variance.numpy() + eps) ** -0.5
        if weight is not None:
            gain = gain * weight.detach().to(mean).numpy()
        scaled = torch.from_numpy(vector.reshape(2, channels) * (gain / -ctx.total)).to(mean.dtype)
        # gain x (gradient - its mean - normalised input x the mean of that product)
        grad_x = F.batch_norm(wide, mean, variance, scaled[1], scaled[0], training=False, eps=eps)
        per_channel = torch.from_numpy(gain).view(1, -1, *[1] * (x.ndim - 2))
        grad_x = grad_x.addcmul_(grad_wide, per_channel).to(x.dtype)
        if weight is None:
            return grad_x, None, None, None, None
        return grad_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None
