"""Whether all workers hold the same state, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simlap.comm import gather
from simlap.train.world import World

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DriftError(RuntimeError):
    """The workers' states have drifted apart."""


def check_alike(tensors: Mapping[str, Tensor], world: World, when: str) -> None:
    """Compare digests of all tensors over the workers, which must call it together; 8 bytes a tensor are exchanged.

    Args:
        tensors: by name, the same names on all workers, in any order: what was read from a safetensors file has another one in
            every process.
        world: the data-parallel world.
        when: for the error.

    Raises:
        DriftError: on all workers; names those that differ and the first tensor that does.
    """
    if world.size == 1 or not tensors:
        return
    names = sorted(tensors)
    mine = torch.stack([digest(tensors[name]).to(world.device) for name in names])
    held = [tuple(row) for row in gather(mine).view(world.size, -1).tolist()]
    ((most, count),) = Counter(held).most_common(1)
    if count == world.size:
        return
    differ = [name for name, column in zip(names, zip(*held, strict=True), strict=True) if len(set(column)) > 1]
    others = [rank for rank, row in enumerate(held) if row != most]
    if count > len(others):
        rest = [rank for rank in range(world.size) if rank not in others]
        whom = f"{_workers(others)} of {world.size} differ{'s' * (len(others) == 1)} from {_workers(rest)}"
    else:
        whom = f"{_workers(range(world.size))} differ from each other"
    raise DriftError(
        f"{whom} {when}, first in {differ[0]} ({len(differ)} of {len(held[0])} tensors differ), and this state is not saved. A "
        "bit has changed in a memory or on a wire, or the workers' processors or libraries are not alike and round differently; "
        "the checkpoint before is sound: go on from there, without the machine that has done it"
    )


def digest(tensor: Tensor) -> Tensor:
    """int64 [] on its device: the sum of its elements' bits, each times an odd number of its own, modulo 2^64.

    Another value of any one element gives another sum, and so do two that change places; of several changes at once one in 2^64
    is missed.
    """
    flat = tensor.detach().flatten()
    bits = flat.view(_INTEGERS[flat.element_size()]).long()
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()


def _workers(ranks: Sequence[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
