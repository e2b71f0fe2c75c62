"""Stopping together: one worker is asked to, and all stop before the same step, without waiting for each other in every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simlap.comm import sum_over_workers
from simlap.data.augment.device import move
from simlap.train.world import World


class Stopping:
    """Whether any worker was asked to stop: the same answer on all, which must all call it before every step.

    One process answers at once. Among several, the answers given before a step travel while it runs, and count before the
    next one.

    Args:
        world: the data-parallel world.
        stop: this worker's answer.
    """

    def __init__(self, world: World, stop: Callable[[], bool]) -> None:
        self._world, self._stop = world, stop
        self._votes: _Votes | None = None

    def __call__(self) -> bool:
        if self._world.size == 1:
            return self._stop()
        if self._votes is not None and self._votes.any():
            return True
        self._votes = _Votes(self._stop(), self._world.device)
        return False

    def finish(self) -> None:
        """Take part in what was begun: nobody may leave the process group before."""
        if self._votes is not None:
            self._votes.any()


class _Votes:
    """A sum over all workers that is under way."""

    def __init__(self, mine: bool, device: torch.device) -> None:
        self._sum: Tensor = sum_over_workers(move(torch.tensor([float(mine)]), device))
        self._done: torch.cuda.Event | None = None
        if device.type == "cuda":
            # copied when it is there; to ask for it later waits for this step's beginning, and not for its end
            self._sum = torch.empty(1, pin_memory=True).copy_(self._sum, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def any(self) -> bool:
        """Whether somebody said so, once all have voted."""
        if self._done is not None:
            self._done.synchronize()
        return bool(self._sum.item())
