"""What the workers of a data-parallel run send each other.

On GPUs it goes by NCCL. Workers on the CPUs of one host meet in shared memory (`simlap.comm.host`), and by gloo elsewhere.
Nothing here has a gradient; `simlap.train.distributed` adds that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from simlap.comm.host import of_host

Group = dist.ProcessGroup | None
"""None: all workers."""


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


def average_(x: Tensor, group: Group = None) -> None:
    """Replaces x by its mean over the workers, the same bits everywhere. For long vectors: gradients."""
    if not x.is_cuda and (host := of_host(group)) is not None:
        host.sum_(x)
    else:
        dist.all_reduce(x, group=group)
    x /= dist.get_world_size(group)


def _sum(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.promote_types(parts.dtype, torch.float32)).to(parts.dtype)
