"""`simlap ablate`: make what the study file says so, then report."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from simlap.config.schema import Resources
from simlap.record.journal import read_study
from simlap.record.ship import BackgroundShipper, ShipReport, ship_once
from simlap.record.view import StudyView
from simlap.report import write_report
from simlap.run.cluster import Node, check_placement, connect, local_node
from simlap.storage import Storage
from simlap.study.events import EventLog
from simlap.study.lease import Lease
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import Study


@dataclass
class Outcome:
    """What a launch came to."""

    view: StudyView
    ran: int
    """Cells and stages that this launch worked on."""
    finished: bool
    """False where the user interrupted."""
    report: list[str] = field(default_factory=list)
    """Where the report's files are."""
    shipped: ShipReport | None = None

    @property
    def failed(self) -> list[str]:
        return [
            f"{arm.name} · seed {cell.seed}: {cell.reason}"
            for arm in self.view.arms
            for cell in arm.cells
            if cell.state == "failed"
        ]


def check_resources(study: Study, nodes: list[Node]) -> int:
    """How many cells fit at a time. Raises ConfigError where one of them, or of its earlier stages, never does."""
    file = str(study.path)
    own = study.spec.resources is not None
    for arm in study.arms:
        for stage in arm.experiment.stages[:-1]:
            key = "resources" if own else f"arm {arm.name}: pretrain.resources"
            check_placement(stage.resources, nodes, file=file, key=key)
    return check_placement(study.base.resources, nodes, file=file, key="resources" if own else "base: resources")


def apply(study: Study, storage: Storage, *, address: str | None, tracking_uri: str, console: Console) -> Outcome:
    """Run what is missing, resume what was interrupted, keep what is done; then the report and the records.

    Everything that can be checked is checked before anything starts. Raises UserError.
    """
    if address is None:
        check_resources(study, [local_node()])
    make_plan(study, storage)
    folder = storage.child("studies", study.name)
    with Lease(folder):
        # again, now that nobody else can change it
        plan = make_plan(study, storage)
        if not plan.pending:
            plan.save()
            outcome = _reported(study, storage, ran=0, finished=True)
            outcome.shipped = ship_once(storage, study.name, tracking_uri)
            return outcome
        nodes = connect(address)
        check_resources(study, nodes)
        plan.save()
        with BackgroundShipper(storage, study.name, tracking_uri) as shipper:
            finished = _execute(plan, folder, nodes, console)
            outcome = _reported(study, storage, ran=len(plan.pending), finished=finished)
            outcome.shipped = shipper.finish()
        return outcome


def _reported(study: Study, storage: Storage, *, ran: int, finished: bool) -> Outcome:
    view = read_study(storage, study.name)
    folder = storage.child("studies", study.name)
    paths = [folder.describe(path) for path in write_report(view, folder)]
    return Outcome(view, ran, finished, paths)


def _execute(plan: Plan, folder: Storage, nodes: list[Node], console: Console) -> bool:
    # Tune is slow to import, and a study with nothing to do has no use for it
    from simlap.study.execute import run_plan, settle
    from simlap.study.progress import Progress

    def slots(resources: Resources) -> int:
        return check_placement(resources, nodes, file=str(plan.study.path))

    settle(plan)
    events = EventLog(folder)
    events.write("launch", pending=len(plan.pending), slots=slots(plan.study.base.resources))
    with Progress(plan, console) as progress:
        finished = run_plan(plan, slots=slots, progress=progress, events=events)
    events.write("launch_ended", finished=finished)
    return finished
