"""Cells that run and report nothing any more: their process was stopped, or waits for what never comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

FACTOR = 10.0
"""A cell may be silent so many times longer than any epoch of this launch took, and `hung_s` more."""


class Silence:
    """Listens to the cells of a launch.

    How long an epoch takes is not known before one has ended: until the first report nothing is taken for hung. Some epochs
    take far longer than all before them (another arm's model, an evaluation now and then): a cell that was killed gets twice the
    patience next time, so that no mistake is made for ever.

    Args:
        least_s: a silence that is no longer is no sign of anything.
        clock: seconds, never set back.
    """

    def __init__(self, least_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_s, self._clock = least_s, clock
        self._heard: dict[str, float] = {}
        self._reported: set[str] = set()
        self._between: float | None = None
        self._first: float | None = None
        self._killed: Counter[str] = Counter()

    def began(self, cell_id: str) -> None:
        """Its process is there."""
        self._heard[cell_id] = self._clock()
        self._reported.discard(cell_id)

    def reported(self, cell_id: str) -> None:
        """An epoch has ended."""
        now = self._clock()
        silent = now - self._heard.get(cell_id, now)
        if cell_id in self._reported:
            self._between = max(self._between or 0.0, silent)
        else:  # with all that comes before a first epoch: counts until more is known
            self._first = max(self._first or 0.0, silent)
        self._reported.add(cell_id)
        self._heard[cell_id] = now

    def ended(self, cell_id: str) -> None:
        """It reports nothing more, and need not."""
        self._heard.pop(cell_id, None)

    def killed(self, cell_id: str) -> None:
        """It was taken for hung."""
        self._killed[cell_id] += 1
        self.ended(cell_id)

    def hung(self) -> dict[str, float]:
        """Cells that have been silent for too long -> for how many seconds."""
        longest = self._between if self._between is not None else self._first
        if longest is None:
            return {}
        limit, now = self._least_s + FACTOR * longest, self._clock()
        silent = {cell_id: now - heard for cell_id, heard in self._heard.items()}
        return {cell_id: seconds for cell_id, seconds in silent.items() if seconds > limit * 2 ** self._killed[cell_id]}
