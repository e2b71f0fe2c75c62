"""A small training module with every part whose arithmetic crosses workers, and what the tests' workers do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from simlap.losses import count_positives, subspace_info_nce
from simlap.nn import Projector
from simlap.nn.backbone import Conv3
from simlap.nn.learnt_filter import StochasticFilter
from simlap.train.distributed import all_gather_with_gradient, convert_sync_batchnorm

NUM_CLASSES, EMBED_DIM = 4, 6
ABSENT = 3  # a class that no image has
STEPS = 5


class Rows(NamedTuple):
    """A batch, or a worker's rows of one."""

    images: Tensor
    labels: Tensor
    pair_labels: Tensor
    noise: Tensor

    def shard(self, rank: int, world_size: int) -> Rows:
        return Rows(*(x[rank::world_size] for x in self))


class Network(nn.Module):
    """Backbone, projector, filter, subspace InfoNCE, probe and gate regulariser; the criterion is part of `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Conv3(1, (4, 8))
        self.projector = Projector(8, EMBED_DIM, hidden_dim=16)
        self.filter = StochasticFilter(NUM_CLASSES, EMBED_DIM, 8, 16, regulariser=1e-2)
        self.probe = nn.Linear(8, NUM_CLASSES)

    def forward(self, rows: Rows, global_size: int) -> Tensor:
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        h = self.backbone(rows.images)
        z = self.projector(h)
        keys, key_labels = all_gather_with_gradient(z), all_gather_with_gradient(rows.labels)
        gate = self.filter(rows.labels, rows.pair_labels, rows.noise)
        positives = count_positives(rows.labels, rows.pair_labels, key_labels)
        if world_size > 1:
            dist.all_reduce(positives)
        labels = (rows.labels, rows.pair_labels, key_labels)
        loss = subspace_info_nce(z, keys, gate.gates, *labels, num_positives=positives)
        probe = F.cross_entropy(self.probe(h.detach()), rows.labels, reduction="sum") / global_size
        total: Tensor = world_size * (loss + probe + gate.regulariser / global_size)  # DDP averages
        return total


def build() -> Network:
    torch.manual_seed(0)
    return Network().double().train()


def batch(size: int, step: int, pairs: str = "arbitrary") -> Rows:
    """`pairs`: `arbitrary`, `none` (no positives at all) or `even` (only for even rows: of two workers, rank 0's)."""
    generator = torch.Generator().manual_seed(100 + step)
    labels = torch.randint(ABSENT, (size,), generator=generator)
    pair_labels = labels[torch.randperm(size, generator=generator)]
    if pairs != "arbitrary":
        pair_labels[(1 if pairs == "even" else 0) :: (2 if pairs == "even" else 1)] = ABSENT
    images = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, EMBED_DIM, generator=generator, dtype=torch.float64)
    return Rows(images, labels, pair_labels, noise)


def gradients(call: Callable[[Rows, int], Tensor], module: nn.Module, rows: Rows, size: int) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    call(rows, size).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def train(
    call: Callable[[Rows, int], Tensor], module: nn.Module, rank: int, world_size: int, size: int
) -> dict[str, Tensor]:
    """The state after a few steps."""
    for step in range(STEPS):
        of_step = gradients(call, module, batch(size, step).shard(rank, world_size), size)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.sub_(
                    of_step[name], alpha=0.2
                )  # an optimiser would import torch's compiler, for seconds in every process
    return {name: x.clone() for name, x in module.state_dict().items()}


def relative(a: dict[str, Tensor], b: dict[str, Tensor], floor: float = 1e-6) -> float:
    """The largest relative error of a tensor: no parameter's error hides behind another's size.

    Tensors smaller than `floor` times the largest one are rounding (a bias before a batch norm) and count as if of that size.
    """
    assert a.keys() == b.keys()
    least = floor * max(float(x.double().norm()) for x in b.values())
    return max(float((a[name] - b[name]).double().norm()) / max(float(b[name].double().norm()), least) for name in b)


PAIRS = ("arbitrary", "even", "none")


def work(rank: int, world_size: int, size: int) -> dict[str, dict[str, Tensor]]:
    """Gradients of the three kinds of batches, the trained state, and the state trained past DDP."""
    results = {}
    for pairs in PAIRS:
        ddp, module = wrap()
        results[pairs] = gradients(ddp, module, batch(size, 0, pairs).shard(rank, world_size), size)
    ddp, module = wrap()
    results["trained"] = train(ddp, module, rank, world_size, size)
    ddp, module = wrap()
    results["past DDP"] = train(ddp.module, module, rank, world_size, size)
    return results


def wrap() -> tuple[DistributedDataParallel, nn.Module]:
    module = convert_sync_batchnorm(build())
    return DistributedDataParallel(module, forward_sync_buffers=False), module


def reference(size: int) -> dict[str, dict[str, Tensor]]:
    """The same in one process with torch's own batch norm."""
    results = {}
    for pairs in PAIRS:
        module = build()
        results[pairs] = gradients(module, module, batch(size, 0, pairs), size)
    module = build()
    results["trained"] = train(module, module, 0, 1, size)
    return results
