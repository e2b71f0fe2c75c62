"""Cells that run and report nothing any more: their process was stopped, or waits for what never comes."""

from __future__ import annotations

import time
from collections.abc import Callable

FACTOR = 10.0
"""A cell may be silent so many times longer than any epoch of this launch took, and `hung_s` more."""


class Silence:
    """Listens to the trials of a launch.

    How long an epoch takes is not known before one has ended: until the first report nothing is taken for hung.

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

    def began(self, trial_id: str) -> None:
        """Its process is there."""
        self._heard[trial_id] = self._clock()
        self._reported.discard(trial_id)

    def reported(self, trial_id: str) -> None:
        """An epoch has ended."""
        now = self._clock()
        silent = now - self._heard.get(trial_id, now)
        if trial_id in self._reported:
            self._between = max(self._between or 0.0, silent)
        else:  # with all that comes before a first epoch: counts until more is known
            self._first = max(self._first or 0.0, silent)
        self._reported.add(trial_id)
        self._heard[trial_id] = now

    def ended(self, trial_id: str) -> None:
        """It reports nothing more, and need not."""
        self._heard.pop(trial_id, None)

    def hung(self) -> dict[str, float]:
        """Trials that have been silent for too long -> for how many seconds."""
        longest = self._between if self._between is not None else self._first
        if longest is None:
            return {}
        limit, now = self._least_s + FACTOR * longest, self._clock()
        return {trial_id: now - heard for trial_id, heard in self._heard.items() if now - heard > limit}
