"""How many workers a run has, where it may have fewer than it asks for: between two attempts, never within one.

Ray Train could change a group by itself (`ScalingConfig(num_workers=(1, 2))`). It does so without asking the workers to save, so
that every node that joins costs what no checkpoint covers; it counts whole nodes as free, whoever else computes there; and its
new workers would be the same attempt to our journal, which knows by attempts whose rows count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from simlap.config.schema import Resources
from simlap.run.cluster import Node, alive_nodes, workers_on

SETTLE_S = 6.0
"""So long after a loss Ray knows that the node is gone, where its process died."""
_GROW_AFTER_S = 10.0
_LOOK_S = 5.0


def workers_now(resources: Resources) -> int:
    """How many workers the nodes hold, were they empty: all that are asked for, or fewer where that is allowed."""
    return min(resources.workers, workers_on(resources, alive_nodes())) if resources.is_elastic else resources.workers


class Growth:
    """Looks now and then whether an attempt with fewer workers could have more.

    Args:
        resources: of the run.
        workers: of the attempt.
        begun: whether its workers train.
        sound: whether the nodes are as they must be; asked before anything is stopped.
    """

    def __init__(
        self, resources: Resources, workers: int, *, begun: Callable[[], bool], sound: Callable[[], bool]
    ) -> None:
        self._resources, self._workers, self._begun, self._sound = resources, workers, begun, sound
        self._looked = time.monotonic()
        self._since: float | None = None

    def more(self) -> int:
        """How many more workers there is room for now; 0 where there is none, or it is too early to ask."""
        missing, now = self._resources.workers - self._workers, time.monotonic()
        if missing == 0 or now - self._looked < _LOOK_S:
            return 0
        self._looked = now
        if self._since is None and self._begun():
            self._since = now
        if self._since is None or now - self._since < _GROW_AFTER_S:
            return 0
        more = min(missing, workers_on(self._resources, free_nodes()))
        return more if more and self._sound() else 0


def free_nodes() -> list[Node]:
    """What nobody has of the nodes."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        Node(free[node["NodeID"]].get("CPU", 0.0), free[node["NodeID"]].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] in free
    ]
