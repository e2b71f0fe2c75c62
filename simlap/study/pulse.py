"""Whether a study's launch lives, as whoever only reads can tell: its lease, looked at again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from simlap.storage import Storage
from simlap.study.lease import BEAT_S, POLLS, is_dead


class Pulse:
    """A study's lease from outside.

    Args:
        study: the folder that holds it.
        still_s: a counter that stands still for longer is that of a launch that is gone, as for another launch.
        clock: seconds; for tests.
    """

    def __init__(
        self, study: Storage, *, still_s: float = POLLS * BEAT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study, self._still_s, self._clock = study, still_s, clock
        self._beat: tuple[str, int] | None = None
        self._since = 0.0

    def look(self) -> Literal["alive", "dead", "none"]:
        """`none`: nobody holds the study; `dead`: whoever holds it is gone. Alive until the counter is known to stand still."""
        try:
            lease = self._study.read_json("lease.json")
        except FileNotFoundError:
            return "none"
        if is_dead(lease):
            return "dead"
        beat, now = (lease["token"], lease["counter"]), self._clock()
        if beat != self._beat:
            self._beat, self._since = beat, now
        return "alive" if now - self._since <= self._still_s else "dead"
