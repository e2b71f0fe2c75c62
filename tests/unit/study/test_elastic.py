"""Cells that may run with fewer workers than they ask for: when they do, and how they grow back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from simlap.config import validate
from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.record.journal import cell_storage
from simlap.run.cluster import Node, check_placement
from simlap.run.elastic import SETTLE_S
from simlap.run.task import GROWS, STOP_REQUEST
from simlap.storage import Storage
from simlap.study import waiting
from simlap.study.capacity import Share
from simlap.study.feed import CellFeed
from simlap.study.waiting import PASSES, Attempt, Waiting

GROUP = Resources(workers=3, min_workers=1)
ONE = Node(1, 0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def attempt(order: int, resources: Resources) -> Attempt:
    cell: Any = SimpleNamespace(stage=SimpleNamespace(experiment=SimpleNamespace(resources=resources)))
    return Attempt(order, cell, Share.of(resources))


class Cluster:
    """Nodes of one CPU, and what waits for them."""

    def __init__(self, nodes: int, *resources: Resources) -> None:
        self.nodes = {str(number): ONE for number in range(nodes)}
        self.grown: list[Attempt] = []
        self.asked: list[tuple[list[Share], list[Share]]] = []
        self.waiting = Waiting(
            lambda: dict(self.nodes),
            grow=self.grow,
            demand=lambda running, waits: self.asked.append(([*running], [*waits])),
        )
        for order, one in enumerate(resources):
            self.waiting.add(attempt(order, one))

    def grow(self, attempt: Attempt) -> bool:
        self.grown.append(attempt)
        return self.storage_works

    storage_works = True


def test_it_starts_with_what_the_nodes_hold_and_grows_when_there_are_more(clock: Clock) -> None:
    cluster = Cluster(2, GROUP)
    first = cluster.waiting.take("a")
    assert first is not None
    assert (first.holds.workers, first.holds.devices) == (2, 2.0)
    assert cluster.waiting.has_room("a")
    cluster.nodes["new"] = ONE
    clock.now += 6
    assert cluster.waiting.take("b") is None
    assert cluster.grown == [], "it has hardly begun"
    clock.now += 6
    assert cluster.waiting.take("b") is None
    assert cluster.grown == [first]
    clock.now += 60
    assert cluster.waiting.take("b") is None
    assert cluster.grown == [first], "once is enough"
    cluster.waiting.release("a")
    cluster.waiting.add(first)
    again = cluster.waiting.take("c")
    assert again is first
    assert (again.holds.workers, again.growing) == (3, False)


def test_the_room_it_grows_into_is_kept_for_it(clock: Clock) -> None:
    cluster = Cluster(1, GROUP, *[Resources()] * 3)
    assert cluster.waiting.take("a") is not None
    clock.now += 20
    cluster.nodes["new"] = ONE
    assert cluster.waiting.take("b") is None, "the cells that wait do not get it"
    assert len(cluster.grown) == 1


def test_where_it_cannot_be_asked_to_stop_its_room_is_free_again(clock: Clock) -> None:
    cluster = Cluster(1, GROUP, Resources())
    cluster.storage_works = False
    first = cluster.waiting.take("a")
    assert first is not None
    clock.now += 20
    cluster.nodes["new"] = ONE
    one = cluster.waiting.take("b")
    assert one is not None
    assert one.share.workers == 1
    assert not first.growing


def test_it_grows_by_what_there_is(clock: Clock) -> None:
    cluster = Cluster(1, Resources(workers=4, min_workers=1))
    first = cluster.waiting.take("a")
    assert first is not None
    cluster.nodes["new"] = ONE
    clock.now += 20
    cluster.waiting.take("b")
    assert cluster.grown == [first]
    cluster.waiting.release("a")
    cluster.waiting.add(first)
    again = cluster.waiting.take("c")
    assert again is not None
    assert again.holds.workers == 2


def test_it_waits_for_all_where_the_nodes_hold_them(clock: Clock) -> None:
    """Others have the room now: with fewer workers it would be slow for as long as it runs."""
    cluster = Cluster(3, Resources(), GROUP)
    assert cluster.waiting.take("one") is not None
    assert cluster.waiting.take("group") is None
    cluster.waiting.release("one")
    group = cluster.waiting.take("group")
    assert group is not None
    assert group.holds.workers == 3


def test_after_a_loss_it_waits_for_news_of_the_node(clock: Clock) -> None:
    cluster = Cluster(3, GROUP)
    lost = cluster.waiting.take("a")
    assert lost is not None
    cluster.waiting.release("a")
    cluster.waiting.settle(lost)
    cluster.waiting.add(lost)
    clock.now += 1
    assert cluster.waiting.take("b") is None, "Ray may not know of the loss yet"
    del cluster.nodes["1"]
    clock.now += SETTLE_S
    again = cluster.waiting.take("c")
    assert again is not None
    assert again.holds.workers == 2


def test_after_a_loss_it_does_not_wait_for_others_to_end(clock: Clock) -> None:
    cluster = Cluster(4, GROUP, Resources())
    lost = cluster.waiting.take("a")
    assert lost is not None
    assert cluster.waiting.take("one") is not None
    cluster.waiting.release("a")
    del cluster.nodes["0"]
    cluster.waiting.settle(lost)
    cluster.waiting.add(lost)
    clock.now += SETTLE_S
    again = cluster.waiting.take("b")
    assert again is not None
    assert again.holds.workers == 2, "three nodes could hold all, and one of them is another cell's"
    clock.now += 20
    cluster.waiting.release("one")
    assert cluster.waiting.take("c") is None
    assert cluster.grown == [lost]


def test_what_needs_more_than_there_is_keeps_nobody_waiting(clock: Clock) -> None:
    cluster = Cluster(1, Resources(workers=3, min_workers=2), *[Resources()] * (3 * PASSES))
    ran = 0
    while cluster.waiting.take(str(ran)) is not None:
        cluster.waiting.release(str(ran))
        ran += 1
    assert ran == 3 * PASSES
    assert cluster.waiting, "it waits itself"
    cluster.nodes["new"] = ONE
    clock.now += 6
    group = cluster.waiting.take("group")
    assert group is not None
    assert group.holds.workers == 2


def test_a_fixed_size_stays_as_it_was(clock: Clock) -> None:
    cluster = Cluster(1, Resources(workers=2))
    first = cluster.waiting.take("a")
    assert first is not None
    assert not cluster.waiting.has_room("a"), "Ray waits for a node with it"
    assert first.holds == Share(2, 1, 0.0)
    assert Share.of(Resources(workers=2, min_workers=2)) == Share.of(Resources(workers=2))


def test_what_runs_and_waits_is_told_now_and_then(clock: Clock) -> None:
    cluster = Cluster(1, Resources(), Resources(), Resources(cpus_per_worker=2))
    cluster.waiting.take("a")
    assert cluster.asked == []
    clock.now += 6
    cluster.waiting.take("b")
    (running, waits) = cluster.asked[-1]
    assert running == [Share(1, 1, 0.0)]
    assert sorted(share.cpus for share in waits) == [1, 2]


def test_the_run_is_asked_to_stop_by_its_folder(clock: Clock, tmp_path: Any) -> None:
    storage = Storage(tmp_path)
    cell: Any = SimpleNamespace(
        cell_id="abc", storage=storage, arm="arm", stage=SimpleNamespace(experiment=SimpleNamespace(resources=GROUP))
    )
    nodes = {"a": ONE}

    class Feed(CellFeed):
        def _trial(self, trial_id: str, attempt: Attempt) -> Any:
            return trial_id

    feed = Feed(
        [cell], nodes=lambda: dict(nodes), make_config=lambda attempt: {}, trainables=("one", "group"), head="h"
    )
    trial: Any = feed.next_trial()
    nodes["b"] = ONE
    clock.now += 20
    assert feed.next_trial() is None
    assert feed.attempts[trial].growing
    assert cell_storage(storage, "abc").read(STOP_REQUEST) == GROWS.encode()


def test_placement_needs_room_for_the_fewest() -> None:
    assert check_placement(GROUP, [ONE], file="x") == 1
    assert check_placement(GROUP, [ONE] * 6, file="x") == 2
    with pytest.raises(ConfigError, match=r"resources\.min_workers: 2 workers of 1 CPUs .* never be placed"):
        check_placement(Resources(workers=3, min_workers=2), [ONE], file="x")


def test_fewest_is_not_more_than_all() -> None:
    assert Resources(workers=2).fewest == 2
    assert not Resources(workers=2, min_workers=2).is_elastic
    with pytest.raises(ConfigError, match=r"min_workers: must not be more than workers \(2\) \(got 3\)"):
        validate(Resources, {"workers": 2, "min_workers": 3})
