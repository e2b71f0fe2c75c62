"""What an autoscaler is asked for: what runs, and some of what waits, as far as nodes come."""

from __future__ import annotations

import pytest

from simlap.study.capacity import Share
from simlap.study.demand import EXPIRES_S, Bundles, Demand

ONE = Share(1, 2, 0.0)


class Cluster:
    """Takes requests, and has a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[Bundles, float]] = []
        self.demand = Demand(lambda bundles, seconds: self.asked.append((bundles, seconds)), clock=lambda: self.now)

    def tell(self, running: int, waiting: int, after: float = 5.0) -> int:
        """How many bundles are asked for then."""
        self.now += after
        self.demand([ONE] * running, [ONE] * waiting)
        return len(self.asked[-1][0])


@pytest.fixture(name="cluster")
def _cluster() -> Cluster:
    return Cluster()


def test_as_much_again_as_runs_is_asked_for_and_grows_as_nodes_come(cluster: Cluster) -> None:
    assert cluster.tell(2, 100) == 4
    assert cluster.tell(2, 100) == 4
    assert cluster.tell(4, 98) == 8
    assert cluster.tell(8, 94) == 16


def test_nothing_runs_yet(cluster: Cluster) -> None:
    assert cluster.tell(0, 100) == 1


def test_less_is_asked_for_where_no_node_comes(cluster: Cluster) -> None:
    """Ray's second autoscaler brings none where it cannot bring all."""
    assert cluster.tell(8, 100) == 16
    assert [cluster.tell(8, 100, after=61) for _ in range(4)] == [12, 10, 9, 9]
    assert cluster.tell(9, 99) == 11, "one has come"


def test_no_more_than_there_is_to_do_and_an_end(cluster: Cluster) -> None:
    assert cluster.tell(4, 1) == 5
    assert cluster.tell(1, 0) == 1
    assert cluster.asked[-1] == ([{"CPU": 2.0}], EXPIRES_S)
    cluster.demand.close()
    assert cluster.asked[-1] == ([], 0.0)


def test_every_worker_of_a_group_is_a_bundle(cluster: Cluster) -> None:
    cluster.demand([Share(2, 1, 0.5)], [Share(3, 4, 0.0)])
    assert cluster.asked[-1][0] == [{"CPU": 1, "GPU": 0.5}] * 2 + [{"CPU": 4}] * 3
