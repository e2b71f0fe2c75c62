"""A launch from end to end, but for Ray and MLflow: a budget that is used up, an error, a launch that takes the study over."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import simlap.train.check  # noqa: F401 - torch is here: the checks need no process of their own
from simlap.cli.app import FAILED
from simlap.cli.study import _print_outcome
from simlap.config import yaml
from simlap.errors import UserError
from simlap.record.ship import ShipReport
from simlap.run.cluster import Node
from simlap.storage import Storage
from simlap.study import apply as launch
from simlap.study import execute, searching
from simlap.study.claims import Claims
from simlap.study.events import EventLog, read_events
from simlap.study.lease import Lease, LostLeaseError
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import Study, load_study
from tests.tiny import TREE
from tests.unit.study.pretend import pretend, take_over

STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {lr: 0.01}
seeds: 2
"""


class Shipper:
    """Ships nothing."""

    abandoned = False

    def __init__(self, *arguments: Any) -> None:
        Shipper.abandoned = False

    def __enter__(self) -> Shipper:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self) -> ShipReport:
        return ShipReport()

    def abandon(self) -> None:
        Shipper.abandoned = True


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "Lease", functools.partial(Lease, beat_s=0.01))
    monkeypatch.setattr(launch, "connect", lambda address: [Node(8, 0)])
    monkeypatch.setattr(launch, "BackgroundShipper", Shipper)
    monkeypatch.setattr(launch, "ship_once", lambda *arguments: None)
    monkeypatch.setattr(launch, "write_report", lambda view, folder: [])


def load(folder: Path, text: str = STUDY) -> Study:
    (folder / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
    (folder / "study.yaml").write_text(text)
    return load_study(folder / "study.yaml")


def apply(study: Study, storage: Storage, options: Options | None = None) -> launch.Outcome:
    console = Console(file=io.StringIO())
    return launch.apply(study, storage, address=None, tracking_uri="", console=console, options=options)


@pytest.mark.parametrize("budget", ["{device_hours: 1e-6}", "{cells: 4}", "{cells: 4, device_hours: 1e-6}"])
def test_a_finished_study_is_finished_whatever_its_budget(tmp_path: Path, budget: str) -> None:
    storage = Storage(tmp_path / "runs")
    study = load(tmp_path, f"{STUDY}budget: {budget}\n")
    events = EventLog(storage.child("studies", "small"))
    for cell in make_plan(study, storage).cells:
        events.write("cell_started", **cell.place)
        pretend(cell)
    outcome = apply(study, storage)
    assert (outcome.budget, outcome.finished, outcome.ran) == (None, True, 0)


@pytest.mark.parametrize(
    ("budget", "said"), [("{device_hours: 1e-6}", "0.000833 of 1e-06 device-hours"), ("{cells: 2}", "2 cells")]
)
def test_what_is_left_of_a_study_whose_budget_is_used_up_is_refused(tmp_path: Path, budget: str, said: str) -> None:
    storage = Storage(tmp_path / "runs")
    study = load(tmp_path, f"{STUDY}budget: {budget}\n")
    events = EventLog(storage.child("studies", "small"))
    for cell in make_plan(study, storage).cells[:2]:
        events.write("cell_started", **cell.place)
        pretend(cell)
    outcome = apply(study, storage)
    assert (outcome.budget, outcome.finished, outcome.ran) == (said, False, 0)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", [(execute, "run_plan"), (searching, "run_searches")])
def test_a_launch_that_fails_says_that_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(*where, fail)
    storage = Storage(tmp_path / "runs")
    with pytest.raises(type(error)):
        apply(load(tmp_path), storage)
    told = [(event["type"], event.get("finished")) for event in read_events(storage.child("studies", "small"))]
    assert told == [("launch", None), ("launch_ended", False)]


def test_a_launch_that_leaves_runs_of_other_code_has_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, study = Storage(tmp_path / "runs"), load(tmp_path)
    pretend(make_plan(study, storage).cells[0], "interrupted", 1, code="old")

    def run_plan(plan: Plan, **options: Any) -> bool:
        for cell in plan.pending:
            pretend(cell)
        return True

    monkeypatch.setattr(execute, "run_plan", run_plan)
    outcome = apply(study, storage)
    assert (outcome.ran, "began: 1" in str(outcome.left)) == (3, True)
    assert read_events(storage.child("studies", "small"))[-1]["finished"] is False
    with pytest.raises(typer.Exit) as ended:
        _print_outcome(outcome, "")
    assert ended.value.exit_code == FAILED
    again = apply(study, storage)
    with pytest.raises(typer.Exit) as ended:
        _print_outcome(again, "")
    assert (again.ran, ended.value.exit_code) == (0, FAILED)
    rerun = apply(study, storage, Options(rerun_stale=True))
    assert (rerun.ran, rerun.left) == (1, None)
    assert read_events(storage.child("studies", "small"))[-1]["finished"] is True
    _print_outcome(rerun, "")


def test_a_launch_does_not_discard_what_another_one_is_at_work_on(tmp_path: Path) -> None:
    storage, study = Storage(tmp_path / "runs"), load(tmp_path)
    cell = make_plan(study, storage).cells[0]
    pretend(cell, "running", 1, code="old")
    with Lease(storage.child("studies", "other"), beat_s=0.01) as theirs:
        Claims(storage, "other", theirs).take(cell.cell_id)
        with pytest.raises(UserError, match="study other"):
            apply(study, storage, Options(rerun_stale=True))
    assert make_plan(study, storage).cells[0].action == "stale"


def test_a_study_that_is_taken_over_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, folder = Storage(tmp_path / "runs"), tmp_path / "runs/studies/small"
    found: dict[str, bytes] = {}

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def run_plan(plan: Plan, *, events: EventLog, claims: Claims, **options: Any) -> bool:
        events.write("cell_started", **plan.cells[0].place)
        take_over(claims.lease)
        found.update(files())
        pretend(plan.cells[0])
        events.write("cell_done", **plan.cells[0].place)
        return True

    monkeypatch.setattr(execute, "run_plan", run_plan)
    with pytest.raises(LostLeaseError, match="was taken over by process 7 on elsewhere"):
        apply(load(tmp_path), storage)
    assert found
    assert files() == found
    assert Shipper.abandoned
