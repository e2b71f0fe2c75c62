"""Cells packed on GPUs by the memory that earlier ones took. GPUs and figures are made up; the feed is the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import yaml
from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.record.journal import cell_storage
from simlap.run import worker
from simlap.run.cluster import Node, check_placement
from simlap.run.device import peak_memory
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.budget import Budget, BudgetGuard, Spending
from simlap.study.estimate import device_hours
from simlap.study.feed import CellFeed
from simlap.study.packing import CONTEXT, MARGIN, MOST, Packing, cells_per_gpu
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import load_study
from simlap.study.waiting import Attempt
from simlap.train.check import check_experiment
from simlap.train.world import World
from tests.tiny import TREE, tiny
from tests.unit.study.pretend import EPOCH_S, pretend

GIB = 2**30
STUDY = """
name: packed
base: base.yaml
factors: {{width: {{path: method.embed_dim, levels: [16, 32]}}}}
baseline: {{width: 16}}
seeds: {seeds}
resources: {{gpus_per_worker: {gpus}}}
"""


class Feed(CellFeed):
    """Names the attempts that it would give to Tune."""

    def _trial(self, trial_id: str, attempt: Attempt) -> Any:
        return trial_id, attempt


def planned(folder: Path, *, seeds: int = 6, gpus: object = "auto") -> Plan:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(STUDY.format(seeds=seeds, gpus=gpus))
    return make_plan(load_study(folder / "study.yaml"), Storage(folder / "runs"))


def feed(plan: Plan, node: Node, guard: BudgetGuard | None = None) -> Feed:
    return Feed(
        [cell for cell in plan.cells if cell.pending], nodes=lambda: {"a": node}, make_config=lambda attempt: {},
        trainables=("one", "group"), head="h", packing=Packing(plan.cells), guard=guard,
    )  # fmt: skip


def start(feeding: Feed) -> list[tuple[str, Attempt]]:
    return cast("list[tuple[str, Attempt]]", [*iter(feeding.next_trial, None)])


def end(feeding: Feed, trial: tuple[str, Attempt], gib: float) -> None:
    """The cell is done and took so much of a GPU of 80 GiB."""
    cell = trial[1].cell
    pretend(cell)
    folder = cell_storage(cell.storage, cell.cell_id)
    memory = {"peak": int(gib * GIB), "total": 80 * GIB}
    folder.write_json("result.json", {**folder.read_json("result.json"), "gpu_memory": memory})
    feeding.on_trial_complete(trial[0])
    feeding.learn(feeding.attempts.pop(trial[0]))


def shares(trials: list[tuple[str, Attempt]]) -> list[tuple[str, float]]:
    return [(attempt.cell.line.removeprefix("width="), attempt.share.gpus) for _, attempt in trials]


@given(st.integers(2**20, 100 * GIB), st.integers(4 * GIB, 200 * GIB))
def test_what_shares_a_gpu_fits_with_a_margin(peak: int, total: int) -> None:
    fitting = cells_per_gpu(peak, total)
    assert 1 <= fitting <= MOST
    assert fitting == 1 or fitting * (MARGIN * peak + CONTEXT) <= total
    assert fitting == MOST or (fitting + 1) * (MARGIN * peak + CONTEXT) > total


def test_the_first_of_a_shape_has_a_gpu_to_itself_and_later_ones_share(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    feeding = feed(plan, Node(32, 2))
    first = start(feeding)
    assert shares(first) == [("16", 1.0), ("32", 1.0)]
    end(feeding, first[0], gib=18)  # three of them fit: 3 x (1.15 x 18 + 0.7) < 80
    then = start(feeding)
    assert shares(then) == [("16", 0.3333)] * 3, "the other shape is not known yet, and has the other GPU"
    assert {then[0][1].resources.gpus_per_worker, then[0][1].resources.gpus} == {0.3333}, "the cap follows"
    end(feeding, first[1], gib=40)
    assert shares(start(feeding)) == [("32", 1.0)], "of which one fits"


def test_what_earlier_launches_measured_counts(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    feeding = feed(plan, Node(32, 2))
    end(feeding, start(feeding)[0], gib=8)
    again = planned(tmp_path)
    packing = Packing(again.cells)
    by_line = {cell.line: packing.share(cell).gpus for cell in again.cells}
    assert by_line == {"width=16": 0.125, "width=32": 1.0}
    more = planned(tmp_path, seeds=8)
    assert shares(start(feed(more, Node(32, 2)))) == [("32", 1.0)] + [("16", 0.125)] * 7


def test_out_of_memory_gives_this_one_and_those_after_it_more(tmp_path: Path) -> None:
    plan = planned(tmp_path, seeds=12)
    feeding = feed(plan, Node(32, 2))
    first = start(feeding)
    assert shares(first) == [("16", 1.0), ("32", 1.0)]
    end(feeding, first[0], gib=8)
    packed = start(feeding)
    assert shares(packed) == [("16", 0.125)] * 8
    full = packed[0]
    feeding.on_trial_complete(full[0])
    attempt = feeding.attempts.pop(full[0])
    attempt.history.out_of_memory = 1
    assert feeding.can_grow(attempt)
    feeding.again(attempt, larger=True)
    for trial in packed[1:]:
        end(feeding, trial, gib=8)
    assert set(shares(start(feeding))) == {("16", 0.25)}, "what the others measured does not shrink it again"


def test_shares_that_are_given_stay(tmp_path: Path) -> None:
    plan = planned(tmp_path, gpus=0.5)
    feeding = feed(plan, Node(32, 1))
    (first, second) = start(feeding)
    assert shares([first, second]) == [("16", 0.5), ("32", 0.5)]
    end(feeding, first, gib=1)
    assert shares(start(feeding)) == [("16", 0.5)]


def test_hours_of_a_share_are_a_share_of_hours(tmp_path: Path) -> None:
    feeding = feed(planned(tmp_path), Node(32, 2))
    end(feeding, start(feeding)[0], gib=8)
    again = planned(tmp_path)
    hours = device_hours(again.cells)
    assert hours.by_line["width=16"] == pytest.approx(0.125 * 5 * 3 * EPOCH_S / 3600), "as they will be packed"
    assert hours.by_line["width=32"] == pytest.approx(6 * 3 * EPOCH_S / 3600), "nothing is known of them"


@pytest.mark.parametrize(("gpus", "devices"), [(0.25, 0.25), (2, 2.0), (0, 1.0)])
def test_what_ran_counts_with_what_it_was_given(tmp_path: Path, gpus: float, devices: float) -> None:
    plan = planned(tmp_path, gpus=gpus)
    cell = plan.cells[0]
    pretend(cell, gpus=gpus)
    assert cell.reread().facts.device_s == pytest.approx(3 * EPOCH_S * devices)
    assert device_hours(planned(tmp_path, gpus=gpus).cells).by_line[cell.line] == pytest.approx(
        devices * 5 * 3 * EPOCH_S / 3600
    )


def test_the_budget_counts_the_share_that_a_cell_has(tmp_path: Path) -> None:
    now = 0.0
    guard = BudgetGuard(Budget(device_hours=1), Spending(), clock=lambda: now)
    plan = planned(tmp_path, seeds=2, gpus=0.25)
    feeding = feed(plan, Node(32, 1), guard=guard)
    assert len(start(feeding)) == 4
    now = 3599.0
    assert guard.reached() is None, "four quarters of an hour are not four hours"
    now = 3600.0
    assert guard.reached() == "1 of 1 device-hours"


def test_workers_of_a_group_share_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, gpus="auto, workers: 2")
    assert [packed.gpus for packed in map(Packing(plan.cells).share, plan.cells)] == [1.0] * 12


def test_auto_needs_a_gpu() -> None:
    auto = Resources(gpus_per_worker="auto")
    assert check_placement(auto, [Node(8, 2)], file="x") == 2
    with pytest.raises(ConfigError, match="1 GPUs can never be placed"):
        check_placement(auto, [Node(8, 0)], file="x")
    with pytest.raises(ConfigError, match="gpus_per_worker"):
        tiny(resources__gpus_per_worker="all")


def test_a_run_says_what_it_took_of_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory(torch.device("cpu")) is None
    taken = iter([5, 3])
    monkeypatch.setattr(worker, "peak_memory", lambda device: {"peak": next(taken), "total": 80})
    (stage,) = check_experiment(tiny(train__epochs=1, data__fraction=0.3), file="x")
    config = stage.experiment.model_dump(mode="json")
    task = CellTask(stage.cell_id, config, str(tmp_path), {"data_fingerprint": stage.info.fingerprint}, stage.start)
    result = cell_storage(Storage(tmp_path), task.cell_id)
    for _ in range(2):  # the second time only evaluates
        list(run_cell(task, World()))
        assert result.read_json("result.json")["gpu_memory"] == {"peak": 5, "total": 80}
    assert result.read_json("provenance.json")["gpus_per_worker"] == 0.0
