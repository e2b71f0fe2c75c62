"""Stages that cells share: planned once, run before their users, and what becomes of those when one fails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.record.journal import RERUN, Journal, cell_storage, next_attempt, read_study
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study import execute
from simlap.study.events import EventLog, read_events
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.planned import PlannedCell
from simlap.study.progress import Progress
from simlap.study.searching import run_searches
from simlap.study.spec import load_study
from simlap.train.world import World
from tests.tiny import TREE

TUNED = {**TREE, "name": "tuned", "pretrain": "first.yaml", "method": {"kind": "supervised"}}
STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {lr: 0.01}
seeds: 2
scheduler: {kind: asha, grace_epochs: 1}
"""


def plan(tmp_path: Path, text: str = STUDY, **base: Any) -> Plan:
    (tmp_path / "first.yaml").write_text(
        yaml.dump({**TREE, "name": "first", "train": {"epochs": 2, "batch_size": 128}})
    )
    (tmp_path / "other.yaml").write_text(yaml.dump({**TREE, "name": "other", "pretrain": "first.yaml"}))
    (tmp_path / "base.yaml").write_text(yaml.dump({**TUNED, **base}))
    (tmp_path / "study.yaml").write_text(text)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))


def lines(made: Plan) -> list[tuple[str, int, str]]:
    return [(cell.line, cell.seed, cell.action) for cell in made.stages]


def run(made: Plan, cell: PlannedCell, epochs: int | None = None) -> None:
    task = CellTask(cell.cell_id, cell.experiment.model_dump(mode="json"), made.storage.uri, {}, cell.start)
    going = run_cell(task, World())
    for progress in going:
        if progress.epoch == epochs:
            going.close()
            break


def test_a_stage_is_planned_once_for_all_its_cells_and_follows_their_seed(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert lines(made) == [("pretrain", 0, "new"), ("pretrain", 1, "new")]
    assert [stage.experiment.seed for stage in made.stages] == [0, 1]
    starts = {stage.seed: stage.cell_id for stage in made.stages}
    assert [cell.start for cell in made.cells] == [starts[cell.seed] for cell in made.cells]
    assert [use.cell_ids for use in made.uses.values()] == [
        [cell.cell_id for cell in made.cells if cell.seed == seed] for seed in (0, 1)
    ]
    assert [[cell.cell_id for cell in wave] for wave in made.waves()] == [list(starts.values())]
    assert len(made.pending) == 2 + 4
    assert [stage.epochs_left for stage in made.stages] == [2, 2]
    assert all(stage.protected for stage in made.stages), "no scheduler stops what others wait for"


def test_a_stage_is_resumed_and_kept(tmp_path: Path) -> None:
    made = plan(tmp_path)
    first, second = made.stages
    run(made, first)
    run(made, second, epochs=1)
    again = plan(tmp_path)
    assert lines(again) == [("pretrain", 0, "done"), ("pretrain", 1, "resume")]
    assert again.stages[1].epochs_left == 1
    assert again.waves() == [[again.stages[1]]]
    hours = again.device_hours()
    assert hours is not None
    assert hours > 0


def test_cells_that_are_done_need_no_stage(tmp_path: Path) -> None:
    made = plan(tmp_path, STUDY.replace("seeds: 2", "seeds: 1").replace("[0.01, 0.02]", "[0.01]"))
    (stage,), (cell,) = made.stages, made.cells
    run(made, stage)
    cell_storage(made.storage, stage.cell_id).write_json(RERUN, {"times": 2})
    run(made, cell)
    noted = [started.reread().facts for started in (stage, cell)]
    assert [(facts.reruns, facts.start_rerun) for facts in noted] == [(2, None), (0, 2)]
    made.storage.delete(f"cells/{stage.cell_id}")
    again = make_plan(made.study, made.storage)
    assert again.pending == []
    assert [stage.line for stage in again.stages] == ["pretrain"], "still part of the study"


def test_a_cell_that_goes_on_from_its_own_checkpoint_needs_no_stage(tmp_path: Path) -> None:
    text = STUDY.replace("seeds: 2", "seeds: 1")
    made = plan(tmp_path, text)
    (stage,), (begun, _) = made.stages, made.cells
    run(made, stage)
    run(made, begun, epochs=1)
    made.storage.delete(f"cells/{stage.cell_id}")
    both = make_plan(made.study, made.storage)
    assert both.waves() == [[both.stages[0]]], "the other arm's cell needs it"
    made = plan(tmp_path, text.replace("[0.01, 0.02]", "[0.01]"))
    assert [cell.action for cell in made.cells] == ["resume"]
    assert [stage.action for stage in made.stages] == ["done"]
    assert made.pending == made.cells
    run(made, made.cells[0])
    assert not made.storage.exists(f"cells/{stage.cell_id}")
    assert make_plan(made.study, made.storage).pending == []
    run(both, both.stages[0], epochs=1)
    for name in (cells := made.storage.child("cells", begun.cell_id)).list("checkpoints"):
        cells.delete(f"checkpoints/{name}/manifest.json")
    Journal(cells, writer="w", attempt=9).end("interrupted", 1)
    assert plan(tmp_path, text).cells[0].action == "resume"
    made = plan(tmp_path, text.replace("[0.01, 0.02]", "[0.01]"))
    assert [stage.action for stage in made.stages] == ["resume"], "without a valid one it starts anew"


def test_a_factor_over_the_stage(tmp_path: Path) -> None:
    text = STUDY.replace(
        "factors: {", "factors: {pairs: {path: pretrain.method.pairs, levels: [arbitrary, identical]}, "
    )
    made = plan(tmp_path, text.replace("baseline: {", "baseline: {pairs: arbitrary, ").replace("seeds: 2", "seeds: 1"))
    assert [stage.line for stage in made.stages] == ["pretrain pairs=arbitrary", "pretrain pairs=identical"]
    assert [len(made.uses[stage.cell_id].cell_ids) for stage in made.stages] == [2, 2]


def test_levels_that_are_experiment_files(tmp_path: Path) -> None:
    """Relative to the study file, from whatever folder the program is started."""
    text = """
name: small
base: base.yaml
factors: {start: {path: pretrain, levels: {one: first.yaml, two: other.yaml, scratch: null}}}
baseline: {start: one}
seeds: 1
"""
    made = plan(tmp_path, text)
    assert [(stage.line, stage.level) for stage in made.stages] == [
        ("pretrain", 0),  # of arm one, and of what arm two starts from
        ("pretrain start=two", 1),
    ]
    first, second = made.stages
    assert second.start == first.cell_id
    assert [cell.start for cell in made.cells] == [first.cell_id, second.cell_id, None]
    assert [[cell.cell_id for cell in wave] for wave in made.waves()] == [[first.cell_id], [second.cell_id]]


def test_a_stage_that_is_an_arm_too_is_one_run(tmp_path: Path) -> None:
    text = """
name: small
base: first.yaml
factors:
  start: {path: pretrain, levels: {scratch: null, one: first.yaml}}
baseline: {start: scratch}
seeds: 1
scheduler: {kind: asha, grace_epochs: 1}
"""
    made = plan(tmp_path, text)
    scratch, one = made.cells
    assert one.start == scratch.cell_id
    assert made.stages == []
    assert made.waves() == [[scratch]]
    run(made, scratch, epochs=1)
    journal = Journal(cell_storage(made.storage, scratch.cell_id), writer="driver", attempt=1)
    journal.end("stopped", 1, reason="asha")
    EventLog(made.storage.child("studies", "small")).write(
        "cell_stopped", cell_id=scratch.cell_id, reason="asha", scheduler=made.study.spec.scheduler.model_dump()
    )
    assert [cell.action for cell in make_plan(made.study, made.storage).cells] == ["resume", "new"]


def test_the_plan_tells_of_the_stages(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.save()
    run(made, made.stages[0], epochs=1)
    view = read_study(made.storage, "small")
    assert [(stage.name, stage.cell.seed, stage.cell.epoch, len(stage.used_by)) for stage in view.stages] == [
        ("pretrain", 0, 1, 2), ("pretrain", 1, 0, 2),
    ]  # fmt: skip


def test_an_older_plan_has_no_stages(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.save()
    saved = made.storage.read_json("studies/small/plan.json")
    del saved["stages"]
    made.storage.write_json("studies/small/plan.json", saved)
    assert read_study(made.storage, "small").stages == []


def test_a_failed_stage_does_not_fail_what_goes_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path, STUDY.replace("seeds: 2", "seeds: 1"))
    run(made, made.stages[0])
    run(made, made.cells[0], epochs=1)
    made.storage.delete(f"cells/{made.stages[0].cell_id}")
    made = make_plan(made.study, made.storage)
    launched: list[list[str]] = []

    def pretend(plan: Plan, cells: Sequence[PlannedCell], **_: Any) -> bool:
        launched.append([cell.cell_id for cell in cells])
        for cell in cells:
            place = cell_storage(plan.storage, cell.cell_id)
            place.write("config.yaml", yaml.dump(cell.experiment.model_dump(mode="json")).encode())
            Journal(place, writer="w", attempt=5).end("failed", 0, reason="boom")
        return True

    monkeypatch.setattr(execute, "execute", pretend)
    events = EventLog(made.storage.child("studies", "small"))
    with Progress(made, Console(file=io.StringIO())) as progress:
        assert execute.run_plan(made, slots=lambda _: 1, progress=progress, events=events)
    assert launched == [[made.stages[0].cell_id], [made.cells[0].cell_id]]


def test_a_failed_stage_fails_what_starts_from_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(tmp_path)
    broken, fine = made.stages
    launched: list[list[str]] = []

    def pretend(plan: Plan, cells: Sequence[PlannedCell], *, progress: Progress, **_: Any) -> bool:
        launched.append([cell.cell_id for cell in cells])
        for cell in cells:
            place = cell_storage(plan.storage, cell.cell_id)
            place.write("config.yaml", yaml.dump(cell.experiment.model_dump(mode="json")).encode())
            state = "failed" if cell is broken else "done"
            if state == "done":
                place.write_json("result.json", {"epochs": 2, "checkpoint": {"sha256": "ab"}, "evaluations": {}})
            Journal(place, writer="w", attempt=1).end(state, 0, reason="boom")  # type: ignore[arg-type]
            progress.ended(cell.cell_id, state, "boom")
        return True

    monkeypatch.setattr(execute, "execute", pretend)
    text = io.StringIO()
    events = EventLog(made.storage.child("studies", "small"))
    with Progress(made, Console(file=text, width=200)) as progress:
        assert execute.run_plan(made, slots=lambda _: 1, progress=progress, events=events)
    healthy = [cell.cell_id for cell in made.cells if cell.start == fine.cell_id]
    assert launched == [[broken.cell_id, fine.cell_id], healthy]
    left = make_plan(made.study, made.storage)
    assert [cell.action for cell in left.cells if cell.start == broken.cell_id] == ["given_up", "given_up"]
    assert [stage.action for stage in left.stages] == ["given_up", "done"]
    assert left.waves() == [], "left alone until somebody asks for it"
    after = make_plan(made.study, made.storage, Options(retry_failed=True))
    assert [cell.action for cell in after.cells if cell.start == broken.cell_id] == ["failed", "failed"]
    reason = f"pretrain · seed 0 ({broken.cell_id}), which it starts from, failed: boom"
    assert {cell.view.reason for cell in after.cells if cell.seed == 0} == {reason}
    assert text.getvalue().count(reason) == 2
    failed = [event["cell_id"] for event in read_events(events.study) if event["type"] == "cell_failed"]
    assert failed == [cell.cell_id for cell in made.cells if cell.seed == 0]
    assert after.waves() == [[after.stages[0]]], "tried again"


def test_a_failed_stage_is_tried_once_in_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches of trials start from it; the next launch that is asked to tries it once more."""
    decay = "{path: optim.weight_decay, range: {low: 1e-6, high: 1e-2, scale: log}}"
    search = f"search: {{factors: {{wd: {decay}}}, trials: 4, batch: 2}}"
    made = plan(tmp_path, STUDY.replace("seeds: 2", "seeds: 1") + search)
    launched: list[str] = []

    def pretend(plan: Plan, cells: Sequence[PlannedCell], *, progress: Progress, **_: Any) -> bool:
        for cell in cells:
            launched.append(cell.line)
            place = cell_storage(plan.storage, cell.cell_id)
            place.write("config.yaml", yaml.dump(cell.experiment.model_dump(mode="json")).encode())
            Journal(place, writer="w", attempt=next_attempt(place)).end("failed", 0, reason="boom")
        return True

    monkeypatch.setattr(execute, "execute", pretend)
    study = load_study(tmp_path / "study.yaml")

    def launch(options: Options) -> Plan:
        made = make_plan(study, Storage(tmp_path / "runs"), options)
        events = EventLog(made.storage.child("studies", "small"))
        with Progress(made, Console(file=io.StringIO())) as progress:
            made, finished = run_searches(
                made, study, options, replanned=progress.update, events=events,
                run=lambda part: execute.run_plan(part, slots=lambda _: 1, progress=progress, events=events),
            )  # fmt: skip
        events.close()
        assert finished
        return made

    over = launch(Options())
    assert launched == [made.stages[0].line]
    assert [trial.action for trial in over.trials] == ["given_up"] * 8
    assert over.tuning is not None
    assert all("pretrain" in (trial.facts.reason or "") for trial in over.trials)
    launch(Options())
    assert len(launched) == 1
    launch(Options(retry_failed=True))
    assert len(launched) == 2
