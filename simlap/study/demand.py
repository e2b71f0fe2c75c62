"""What a study asks a cluster for: an autoscaler sees what waits only where it is told.

Cells are handed to Ray when there is room for them (`simlap.study.waiting`), so Ray itself never knows of more than one that
has none. What runs and waits is therefore told to Ray's coordinator of such requests, with an end: should this process be killed,
nodes that nobody uses are given back when it has passed. On a cluster without an autoscaler it changes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from itertools import chain, islice

from simlap.study.capacity import Share

Bundles = list[dict[str, float]]

EXPIRES_S = 120.0
"""A request is void so long after it was made last."""
_PATIENCE_S = 60.0
"""So long nodes may take to come before fewer are asked for."""
_MOST = 4096
"""Bundles in one request."""


class Demand:
    """Asks for what runs and for some of what waits, as much again as runs at first.

    Ray's second autoscaler brings nothing at all where it cannot bring everything, because the cluster may not become that
    large or the cloud has no more. So where no node comes in time, half as much is asked for, down to one more cell, and when
    nodes come, twice as much again.

    Args:
        request: tells the autoscaler what the cluster is to have room for, and for how many seconds that holds.
        clock: seconds.
    """

    def __init__(
        self, request: Callable[[Bundles, float], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._request, self._clock = request, clock
        self._more: int | None = None
        self._running, self._since = 0, clock()

    def __call__(self, running: Sequence[Share], waiting: Sequence[Share]) -> None:
        """Told now and then of what runs (some of which may wait for a node of its own) and of what waits, in order."""
        now = self._clock()
        if self._more is None:
            self._more = max(1, len(running))
        elif len(running) > self._running:
            self._more, self._since = max(1, 2 * self._more), now
        elif now - self._since > _PATIENCE_S:
            self._more, self._since = max(1, self._more // 2), now
        self._running = len(running)
        asked = chain(running, islice(waiting, self._more))
        bundles = (
            {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
            for share in asked
            for _ in range(share.workers)
        )
        self._request([*islice(bundles, _MOST)], EXPIRES_S)

    def close(self) -> None:
        """Nothing is asked for any more."""
        self._request([], 0.0)


def cluster_demand() -> Demand:
    """Of the cluster that this process is connected to."""
    # takes a second; Train asks for workers through the same, so that neither overwrites what the other wants
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator

    coordinator = DefaultAutoscalingCoordinator(f"simlap-{uuid.uuid4().hex}")

    def request(bundles: Bundles, seconds: float) -> None:
        if bundles:
            coordinator.request_resources(bundles, seconds)
        else:
            coordinator.cancel_request()

    return Demand(request)
