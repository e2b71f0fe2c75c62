"""Cells side by side: nothing is promised twice, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config.schema import Resources
from simlap.run.cluster import Node
from simlap.study import waiting
from simlap.study.budget import Budget, BudgetGuard, Spending
from simlap.study.capacity import Capacity, Share, devices
from simlap.study.feed import CellFeed
from simlap.study.waiting import PASSES, Attempt

SHARES = st.builds(
    Share, st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0])
)  # fmt: skip


def test_two_halves_share_a_gpu_and_whole_ones_stay_whole() -> None:
    capacity = Capacity({"a": Node(8, 2)})
    assert all(capacity.take(str(i), Share(1, 1, 0.5)) for i in range(2))
    assert capacity.take("whole", Share(1, 1, 1.0)), "both halves lie on one GPU"
    assert not capacity.take("more", Share(1, 1, 0.25))
    capacity.release("0")
    assert capacity.take("more", Share(1, 1, 0.25))


def test_a_share_is_never_split_over_two_gpus_or_nodes() -> None:
    capacity = Capacity({"a": Node(4, 2), "b": Node(4, 2)})
    for holder in range(4):
        assert capacity.take(str(holder), Share(1, 1, 0.6))
    assert not capacity.take("no", Share(1, 1, 0.6))
    assert Capacity({"a": Node(2, 0), "b": Node(2, 0)}).take("group", Share(2, 2, 0))
    assert not Capacity({"a": Node(2, 0), "b": Node(2, 0)}).take("one", Share(1, 3, 0))


def test_a_group_is_placed_as_a_whole_or_not_at_all() -> None:
    capacity = Capacity({"a": Node(3, 0)})
    assert not capacity.take("four", Share(4, 1, 0))
    assert capacity.take("three", Share(3, 1, 0)), "nothing was kept by the one that did not fit"


def test_a_node_that_is_gone_holds_nothing() -> None:
    capacity = Capacity({"a": Node(1, 0), "b": Node(1, 0)})
    assert capacity.take("1", Share(1, 1, 0))
    assert capacity.take("2", Share(1, 1, 0))
    capacity.nodes = {"b": Node(1, 0), "c": Node(1, 0)}
    assert capacity.take("3", Share(1, 1, 0))
    assert not capacity.take("4", Share(1, 1, 0))


@pytest.mark.parametrize(
    ("share", "larger"),
    [
        (Share(1, 1, 0.25), Share(1, 1, 0.5)),
        (Share(1, 2, 0.7), Share(1, 2, 1.0)),
        (Share(1, 1, 1.0), None),
        (Share(2, 1, 2.0), None),
        (Share(1, 1, 0), Share(1, 2, 0)),
        (Share(1, 3, 0), Share(1, 4, 0)),
        (Share(2, 1, 0), Share(2, 2, 0)),
        (Share(1, 4, 0), None),
    ],
)
def test_a_larger_share(share: Share, larger: Share | None) -> None:
    assert share.larger(Node(4, 2)) == larger


@pytest.mark.parametrize(
    ("workers", "gpus", "count"), [(1, 0.0, 1.0), (4, 0.0, 4.0), (1, 0.25, 0.25), (1, 2.0, 2.0), (4, 2.0, 8.0)]
)
def test_a_device_is_a_gpu_or_the_cpus_of_a_worker(workers: int, gpus: float, count: float) -> None:
    assert devices(workers, gpus) == Share(workers, 1, gpus).devices == count


@given(st.lists(SHARES, max_size=30), st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=4))
def test_no_more_is_promised_than_there_is(shares: list[Share], sizes: list[tuple[int, int]]) -> None:
    nodes = {str(i): Node(*size) for i, size in enumerate(sizes)}
    capacity = Capacity(nodes)
    for number, share in enumerate(shares):
        capacity.take(str(number), share)
        if number % 3 == 2:
            capacity.release(str(number - 1))
    cpus: Counter[str] = Counter()
    gpus: Counter[tuple[str, int]] = Counter()
    for share, placed in capacity.held.values():
        assert len(placed) == share.workers
        for node, indices in placed:
            cpus[node] += int(share.cpus)
            for index in indices:
                gpus[node, index] += min(share.gpus, 1)  # type: ignore[assignment]
    assert all(count <= nodes[node].cpus for node, count in cpus.items())
    assert all(count <= 1 + 1e-9 and index < nodes[node].gpus for (node, index), count in gpus.items())


class Feed(CellFeed):
    """Names the cells that it would give to Tune."""

    def _trial(self, trial_id: str, attempt: Attempt) -> Any:
        return trial_id, attempt.cell.cell_id


def cells(*resources: Resources) -> list[Any]:
    return [
        SimpleNamespace(cell_id=str(number), arm="arm", stage=SimpleNamespace(experiment=SimpleNamespace(resources=r)))
        for number, r in enumerate(resources)
    ]


def feed(given: list[Any], node: Node, **options: Any) -> Feed:
    return Feed(
        given, nodes=lambda: {"a": node}, make_config=lambda attempt: {}, trainables=("one", "group"), head="h", **options
    )  # fmt: skip


def started(feeding: Feed) -> list[tuple[str, str]]:
    found = []
    while (trial := feeding.next_trial()) is not None:
        found.append(trial)
    return found  # type: ignore[return-value]


def test_cells_of_different_sizes_run_side_by_side_in_order() -> None:
    group, one, two = Resources(workers=2), Resources(), Resources(cpus_per_worker=2)
    feeding = feed(cells(one, group, two, one, one), Node(4, 0))
    first = started(feeding)
    assert [cell for _, cell in first] == ["0", "1", "3"], "two CPUs do not fit, but one does"
    feeding.on_trial_complete(first[1][0])
    assert [cell for _, cell in started(feeding)] == ["2"]
    assert not feeding.is_finished()


def test_a_large_cell_is_not_overtaken_for_ever() -> None:
    feeding = feed(cells(Resources(), Resources(workers=2), *[Resources()] * 100), Node(2, 0))
    running = started(feeding)
    order = [cell for _, cell in running]
    while "1" not in order:
        feeding.on_trial_complete(running.pop(0)[0])
        new = started(feeding)
        running += new
        order += [cell for _, cell in new]
    assert len(order) <= PASSES + 3


@given(st.lists(st.builds(Resources, workers=st.integers(1, 4), cpus_per_worker=st.integers(1, 2)), max_size=40))
def test_every_cell_is_run_once(resources: list[Resources]) -> None:
    feeding = feed(cells(*resources), Node(8, 0))
    ran: list[str] = []
    running = started(feeding)
    while running:
        trial, cell = running.pop(len(ran) % len(running))
        ran.append(cell)
        feeding.on_trial_complete(trial)
        running += started(feeding)
    assert sorted(ran, key=int) == [str(number) for number in range(len(resources))]
    assert feeding.is_finished()


def test_no_more_at_a_time_than_is_allowed() -> None:
    feeding = feed(cells(*[Resources()] * 5), Node(4, 0), limit=lambda resources: 2)
    assert len(started(feeding)) == 2


def test_what_can_never_fit_now_is_left_to_ray() -> None:
    """A node may come back: the study waits, it does not give up or spin."""
    feeding = feed(cells(*[Resources(cpus_per_worker=4)] * 2, Resources()), Node(2, 0))
    large, small = started(feeding)
    assert (large[1], small[1]) == ("0", "2"), "one waits with Ray for a node, and those that fit run"
    feeding.on_trial_complete(small[0])
    assert started(feeding) == [], "one of a size says that a node is wanted"
    assert not feeding.is_finished()
    feeding.on_trial_complete(large[0])
    assert [cell for _, cell in started(feeding)] == ["1"]


def test_many_small_cells_go_on_when_the_node_of_a_large_one_is_lost() -> None:
    """One GPU cell, whose node was preempted, among many CPU cells."""
    feeding = feed(cells(Resources(), Resources(gpus_per_worker=1), *[Resources()] * (3 * PASSES)), Node(2, 0))
    running = started(feeding)
    assert [cell for _, cell in running] == ["0", "1", "2"], "the GPU cell is with Ray, which an autoscaler sees"
    gpu = running.pop(1)[0]
    assert run_out(feeding, running) == 3 * PASSES + 1
    assert not feeding.is_finished(), "the GPU cell waits"
    feeding.on_trial_complete(gpu)
    assert feeding.is_finished()


def run_out(feeding: Feed, running: list[tuple[str, str]]) -> int:
    """End these, and whatever starts in their place, until nothing does. How many there were."""
    ran = 0
    while running:
        feeding.on_trial_complete(running.pop(0)[0])
        running += started(feeding)
        ran += 1
    return ran


def test_a_node_that_comes_back_holds_who_waited_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_S", -1.0)
    nodes = {"a": Node(1, 0)}
    now = 0.0
    guard = BudgetGuard(Budget(device_hours=1), Spending(), clock=lambda: now)
    feeding = Feed(
        cells(*[Resources(gpus_per_worker=1)] * 3), nodes=lambda: nodes, make_config=lambda attempt: {},
        trainables=("one", "group"), head="h", guard=guard,
    )  # fmt: skip
    assert [cell for _, cell in started(feeding)] == ["0"]
    now = 7200.0
    assert guard.reached() is None, "what waits for a node takes no device"
    nodes["b"] = Node(8, 2)
    assert [cell for _, cell in started(feeding)] == ["1"], "one GPU of two is the first one's"
    now += 1800.0
    assert guard.reached() == "1 of 1 device-hours"


def test_who_waited_for_a_node_is_not_overtaken_for_ever_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, one of whose nodes was lost, among cells of one worker that are never over at the same moment."""
    monkeypatch.setattr(waiting, "_LOOK_S", -1.0)
    nodes = {"a": Node(1, 0)}
    feeding = Feed(
        cells(Resources(workers=2), *[Resources()] * (5 * PASSES)), nodes=lambda: nodes, make_config=lambda attempt: {},
        trainables=("one", "group"), head="h",
    )  # fmt: skip
    running = started(feeding)
    assert [cell for _, cell in running] == ["0", "1"]
    group = running.pop(0)[0]
    for _ in range(2 * PASSES):
        feeding.on_trial_complete(running.pop(0)[0])
        running += started(feeding)
    assert len(running) == 1, "nobody waits for a node that is not there"
    nodes["b"] = Node(1, 0)
    running += started(feeding)
    assert run_out(feeding, running) == PASSES + 1
    assert feeding._waiting.has_room(group)
    feeding.on_trial_complete(group)
    assert len(started(feeding)) == 2, "the others go on"


def test_a_limit_of_one_kind_keeps_no_other_waiting() -> None:
    given = cells(Resources(), *[Resources(workers=2)] * 2, *[Resources()] * (3 * PASSES))
    feeding = feed(given, Node(4, 0), limit=lambda resources: 1 if resources.workers == 2 else 9)
    running = started(feeding)
    assert [cell for _, cell in running] == ["0", "1", "3"]
    group = running.pop(1)[0]
    assert run_out(feeding, running) == 3 * PASSES + 1
    feeding.on_trial_complete(group)
    assert [cell for _, cell in started(feeding)] == ["2"]


def test_a_budget_refuses_any_number_of_cells() -> None:
    guard = BudgetGuard(Budget(cells=1), Spending())
    feeding = feed(cells(*[Resources()] * 5001), Node(2, 0), guard=guard)
    ((trial, cell),) = started(feeding)
    assert cell == "0"
    assert guard.refused == "1 cells"
    feeding.on_trial_complete(trial)
    assert feeding.is_finished()


def test_when_the_user_has_stopped_nothing_more_starts() -> None:
    feeding = feed(cells(Resources(), Resources()), Node(1, 0))
    started(feeding)
    feeding.set_finished()  # type: ignore[no-untyped-call]  # Ray's
    assert feeding.next_trial() is None
    assert feeding.is_finished()
