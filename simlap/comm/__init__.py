"""What the workers of a data-parallel run send each other.

On GPUs it goes by NCCL. Workers on the CPUs of one host meet in shared memory (`simlap.comm.host`), and by gloo elsewhere.
Nothing here has a gradient; `simlap.train.distributed` adds that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from simlap.comm.host import SLOT_BYTES, Vector, of_host

Group = dist.ProcessGroup | None
"""None: all workers."""
_BUCKET = 25 * 2**20
"""Bytes sent at once; DDP's default."""


def sum_over_workers(x: Tensor, group: Group = None) -> Tensor:
    """The sum of all workers' x, the same bits everywhere. For vectors that are short.

    Args:
        x: the same shape on all workers; may be overwritten.
        group: process group; default: all.
    """
    if x.is_cuda:
        dist.all_reduce(x, group=group)
        return x
    if (host := of_host(group)) is not None:
        return host.sum(x)
    # gloo's all-reduce passes a vector round in many small messages; everyone sending it to everyone takes a fifth of that
    workers = dist.get_world_size(group)
    received = x.new_empty(workers, *x.shape)
    dist.all_to_all_single(received, x.expand(workers, *x.shape).contiguous(), group=group)
    return received.sum(0)


def gather(x: Tensor, group: Group = None) -> Tensor:
    """All workers' rows in rank order: [n, ...] here, the same number on each worker -> [W n, ...]."""
    if not x.is_cuda and (host := of_host(group)) is not None:
        return host.gather(x).flatten(0, 1)
    result = x.new_empty(dist.get_world_size(group) * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(result, x.contiguous(), group=group)
    return result


def sum_rows(x: Tensor, rows: Sequence[int], group: Group = None) -> Tensor:
    """This worker's rows of the sum of all workers' x, in float32 at least and rank order: a reduce-scatter.

    Args:
        x: [sum of rows, ...], the same shape on all workers.
        rows: how many of them are each worker's; they need not be equal.
        group: process group; default: all.

    Returns:
        [rows of this worker, ...], of x's dtype.
    """
    rank = dist.get_rank(group)
    if not x.is_cuda and (host := of_host(group)) is not None:
        return host.sum_rows(x, sum(rows[:rank]), rows[rank])
    # An exchange and a sum. It moves half of what an all-reduce does (gloo's own reduce_scatter is one), takes uneven rows as
    # they are, and sends half precision as it is: only the sum is float32.
    workers, own = len(rows), rows[rank]
    received = x.new_empty(workers * own, *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), [own] * workers, [*rows], group=group)
    return _sum(received.view(workers, own, *x.shape[1:]))


def sum_vector(x: Vector, group: Group = None) -> Vector:
    """As `sum_over_workers`, of [n] in float64 on the CPU: where the number of operations is what takes the time."""
    host = of_host(group)
    if host is not None and x.nbytes <= SLOT_BYTES:
        return host.sum_vector(x)
    total: Vector = sum_over_workers(torch.from_numpy(x), group).numpy()
    return total


def average_(tensors: Sequence[Tensor], group: Group = None) -> None:
    """Replaces each by its mean over the workers, the same bits everywhere. For much: gradients.

    Args:
        tensors: the same shapes, dtypes and strides on all workers.
        group: process group; default: all.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    host = of_host(group) if tensors and not tensors[0].is_cuda else None
    for alike in by_dtype.values():
        if host is not None:
            dense = [x if _is_dense(x) else x.contiguous() for x in alike]
            host.average_(dense)
            for x, mean in zip(alike, dense, strict=True):
                if mean is not x:
                    x.copy_(mean)
            continue
        for bucket in _buckets(alike):
            flat = torch.cat([x.flatten() for x in bucket])
            dist.all_reduce(flat, group=group)
            flat /= dist.get_world_size(group)
            for x, mean in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                x.copy_(mean.view_as(x))


def _is_dense(x: Tensor) -> bool:
    """Whether its elements fill a piece of memory."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(x.nbytes for x in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _sum(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.promote_types(parts.dtype, torch.float32)).to(parts.dtype)
