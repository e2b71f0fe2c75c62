"""Workers in a circle, each of which sees the rows of all while it holds those of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

KEYS = 1  # tag of the messages


class Circle(NamedTuple):
    """The workers; what is sent goes to the worker before, so that worker r sees the rows of r, r + 1, ..."""

    rank: int
    sizes: tuple[int, ...]
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, z: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Circle:
        """Raises ValueError where the sizes are not those of the group's workers."""
        together = dist.is_available() and dist.is_initialized()
        rank, workers = (dist.get_rank(group), dist.get_world_size(group)) if together else (0, 1)
        if len(sizes) != workers or sizes[rank] != len(z):
            raise ValueError(f"sizes {[*sizes]} do not fit worker {rank} of {workers} with {len(z)} rows")
        return cls(rank, tuple(sizes), group)

    def visit(self, own: Tensor) -> Iterator[Tensor]:
        """The workers' rows, own ones first; the next are on their way while the caller works."""
        rows = own
        for step in range(len(self.sizes)):
            last = step == len(self.sizes) - 1
            passing = None if last else self.pass_on(rows, step + 1, KEYS)
            yield rows
            if passing is not None:
                rows = passing.wait()

    def owner(self, step: int) -> int:
        """Whose rows are here after so many steps."""
        return (self.rank + step) % len(self.sizes)

    def begin(self, step: int) -> int:
        """Where they begin among the rows of all, in rank order."""
        return sum(self.sizes[: self.owner(step)])

    def pass_on(self, rows: Tensor, step: int, tag: int) -> Passing:
        """Send the rows to the worker before, and receive those that are to be here at `step` from the one behind."""
        received = rows.new_empty(self.sizes[self.owner(step)], *rows.shape[1:])
        messages = [
            dist.P2POp(operation, tensor, self._worker(place), self.group, tag)
            for operation, tensor, place in ((dist.isend, rows, -1), (dist.irecv, received, 1))
            if len(tensor)  # both ends know where there is nothing to send
        ]
        return Passing(rows, received, dist.batch_isend_irecv(messages) if messages else [])

    def _worker(self, place: int) -> int:
        neighbour = self.owner(place)
        return neighbour if self.group is None else dist.get_global_rank(self.group, neighbour)


class Passing(NamedTuple):
    sent: Tensor  # not to be freed before it has left
    received: Tensor
    works: list[Any]

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.received
