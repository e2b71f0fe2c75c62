"""The data-parallel world a worker lives in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from simlap.comm import sum_over_workers


@dataclass(frozen=True)
class World:
    """Rank and size of the default process group; one process without a group is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> World:
        """The world of the initialised default process group, or a world of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return cls(device=torch.device(device))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all workers, without gradient. Same shape."""
        if self.size == 1:
            return tensor.detach()
        return sum_over_workers(tensor.detach().clone())

    def any(self, flag: bool) -> bool:
        """True where any worker says so; all workers must ask."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def rows(self, total: int, rank: int | None = None) -> int:
        """How many of `total` rows a rank holds (rows rank::size)."""
        return len(range(self.rank if rank is None else rank, total, self.size))

    def offset(self, total: int) -> int:
        """Where this rank's rows begin when the ranks' rows are concatenated in rank order."""
        return sum(self.rows(total, rank) for rank in range(self.rank))
