"""What an `ablate` would do, from the study file and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.data.splits import inspect_data
from simlap.errors import ConfigError, DataError
from simlap.record.journal import Journal, cell_storage, read_study
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import load_study
from simlap.train.world import World
from tests.tiny import TREE

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 1
scheduler: {kind: asha, grace_epochs: 1}
"""


def plan(tmp_path: Path, text: str = STUDY, **base: object) -> Plan:
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, **base}))
    (tmp_path / "study.yaml").write_text(text)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))


def actions(made: Plan) -> list[str]:
    return [cell.action for cell in made.cells]


def run(made: Plan, number: int, epochs: int | None = None) -> None:
    cell = made.cells[number]
    going = run_cell(CellTask(cell.cell_id, cell.experiment.model_dump(mode="json"), made.storage.uri), World())
    for progress in going:
        if progress.epoch == epochs:
            going.close()
            break


def test_new_resume_done_and_failed(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert actions(made) == ["new", "new"]
    assert [cell.epochs_left for cell in made.cells] == [3, 3]
    assert made.device_hours() is None
    run(made, 0)
    run(made, 1, epochs=2)
    made = plan(tmp_path)
    assert actions(made) == ["done", "resume"]
    assert [cell.epochs_left for cell in made.cells] == [0, 1]
    assert made.device_hours() is not None
    Journal(cell_storage(made.storage, made.cells[1].cell_id), writer="x", attempt=2).end("failed", 2, reason="boom")
    assert actions(plan(tmp_path)) == ["done", "given_up"]


def test_a_failure_that_no_launch_has_decided_on_is_no_failure(tmp_path: Path) -> None:
    """A launch that is killed between a failed attempt and the next one has not given the cell up."""
    made = plan(tmp_path)
    cell = made.cells[1]
    run(made, 1, epochs=2)
    events = EventLog(made.storage.child("studies", "small"))
    Journal(cell_storage(made.storage, cell.cell_id), writer="x", attempt=2).end("failed", 2, reason="the actor died")
    for kind, action in (
        ("cell_started", "resume"), ("cell_retried", "resume"), ("cell_failed", "given_up"), ("cell_started", "resume"),
        ("cell_retried", "resume"), ("cell_started", "resume"), ("cell_failed", "given_up"),
    ):  # fmt: skip
        events.write(kind, **cell.place)
        assert actions(plan(tmp_path)) == ["new", action], kind
        assert plan(tmp_path).cells[1].epochs_left == (1 if action == "resume" else 0)


def test_more_seeds_and_levels_keep_what_is_done(tmp_path: Path) -> None:
    made = plan(tmp_path)
    run(made, 0)
    more = plan(tmp_path, STUDY.replace("seeds: 1", "seeds: 2").replace("[gumbel, open]", "[gumbel, open, product]"))
    assert [(cell.line, cell.seed) for cell in more.cells if not cell.pending] == [("filter=gumbel", 0)]
    assert len(more.pending) == 5


def test_cells_are_named_seed_by_seed(tmp_path: Path) -> None:
    made = plan(tmp_path, STUDY.replace("seeds: 1", "seeds: 2"))
    assert [cell.seed for cell in made.cells] == [0, 0, 1, 1]


def test_a_new_evaluation_trains_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path, evaluate=[{"kind": "probe"}])
    run(made, 0)
    again = plan(tmp_path, evaluate=[{"kind": "probe"}, {"kind": "knn"}])
    assert actions(again) == ["evaluate", "new"]
    assert again.cells[0].epochs_left == 0
    run(again, 0)
    assert actions(plan(tmp_path, evaluate=[{"kind": "probe"}, {"kind": "knn"}])) == ["done", "new"]


def test_transfer_counts_by_the_fingerprint_of_its_data(tmp_path: Path) -> None:
    """In what the study remembers, too: otherwise the numbers of its cells would not be found."""
    few = {"source": "digits", "classes": [1, 2, 3]}
    transfer = {"kind": "transfer", "data": {"few": few}, "protocols": [{"kind": "knn"}]}
    tree = {"evaluate": [{"kind": "probe"}, transfer], "train": {"epochs": 1, "batch_size": 128}}
    made = plan(tmp_path, STUDY.replace("base: base.yaml", "base: base.yaml\nmetric: {name: val/probe_top1}"), **tree)
    made.save()
    run(made, 0)
    assert actions(make_plan(made.study, made.storage)) == ["done", "new"]
    fingerprint = inspect_data(made.cells[0].experiment.data).fingerprint
    saved = made.storage.read_json("studies/small/plan.json")["arms"][0]["evaluate"]
    assert saved[1]["data"]["few"]["fingerprint"] == fingerprint
    (cell,) = [cell for arm in read_study(made.storage, "small").arms for cell in arm.cells if cell.state == "done"]
    assert cell.config["evaluate"] == saved
    assert "test/few_knn_top1" in cell.result


def test_a_cell_that_this_study_stopped_stays_stopped_unless_protected(tmp_path: Path) -> None:
    made = plan(tmp_path)
    run(made, 1, epochs=1)
    cell = made.cells[1]
    Journal(cell_storage(made.storage, cell.cell_id), writer="driver", attempt=1).end("stopped", 1, reason="asha")
    assert actions(plan(tmp_path)) == ["new", "resume"], "another study stopped it, this one needs it further"
    events = EventLog(made.storage.child("studies", "small"))
    events.write("cell_stopped", cell_id=cell.cell_id, reason="asha", scheduler=made.study.spec.scheduler.model_dump())
    assert actions(plan(tmp_path)) == ["new", "stopped"]
    for other in ("{kind: none}", "{kind: asha, grace_epochs: 2}"):
        text = STUDY.replace("{kind: asha, grace_epochs: 1}", other)
        assert actions(plan(tmp_path, text)) == ["new", "resume"], "another scheduler has not stopped it"
    assert actions(plan(tmp_path, STUDY + "protect: [{filter: open}]\n")) == ["new", "resume"]


def test_removed_arms_are_named(tmp_path: Path) -> None:
    plan(tmp_path).save()
    assert plan(tmp_path, STUDY.replace("[gumbel, open]", "[gumbel, product]")).removed == ["filter=open"]


def test_the_batch_is_checked_against_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch"):
        plan(tmp_path, train={"epochs": 1, "batch_size": 5000})


def test_arms_that_are_the_same_run_are_refused(tmp_path: Path) -> None:
    same = "path: train.precision, levels: {gumbel: auto, open: fp32}"  # the file asks for no GPU
    with pytest.raises(ConfigError, match="same experiment as arm 'filter=gumbel'"):
        plan(tmp_path, STUDY.replace("path: method.gate.kind, levels: [gumbel, open]", same))
