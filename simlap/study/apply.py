"""`simlap ablate`: make what the study file says so, then report."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from simlap.config.schema import Resources
from simlap.record.journal import read_study
from simlap.record.ship import BackgroundShipper, ShipReport, ship_once
from simlap.record.view import StudyView
from simlap.report import Report, build, write_report
from simlap.run import preempt
from simlap.run.cluster import Node, check_placement, connect
from simlap.run.nodes import agree
from simlap.storage import Storage, StorageFullError
from simlap.study.announce import announce
from simlap.study.claims import Claims
from simlap.study.events import EventLog, persist
from simlap.study.lease import Lease, LostLeaseError
from simlap.study.options import Options
from simlap.study.placement import baseline_resources, check_resources, this_machine
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import Study
from simlap.study.stale import discard, left_behind, to_rerun


@dataclass
class Outcome:
    """What a launch came to."""

    report: Report
    ran: int
    """Cells and stages that this launch worked on."""
    finished: bool
    """False where the user interrupted, or the budget was reached."""
    budget: str | None = None
    """What of the budget is used up, in words."""
    files: list[str] = field(default_factory=list)
    """Of the report."""
    shipped: ShipReport | None = None
    preempted: bool = False
    """Whether this process was told to end."""
    left: str | None = None
    """What other code has begun and did not finish, in words."""

    @property
    def view(self) -> StudyView:
        """The study as the report shows it."""
        return self.report.study

    @property
    def failed(self) -> list[str]:
        return [
            f"{arm.name} · seed {cell.seed}: {cell.reason}"
            for arm in self.view.arms
            for cell in arm.cells
            if cell.state == "failed"
        ]


def check(study: Study, storage: Storage, *, address: str | None, options: Options) -> None:
    """Everything about a launch that can be checked before it holds the study. Raises UserError; starts nothing."""
    if address is None:
        check_resources(study, [this_machine(study)])
    make_plan(study, storage, options)


def apply(
    study: Study,
    storage: Storage,
    *,
    address: str | None,
    tracking_uri: str,
    console: Console,
    options: Options | None = None,
) -> Outcome:
    """Run what is missing, resume what was interrupted, keep what is done; then the report and the records.

    Everything that can be checked is checked before anything starts. Raises UserError; LostLeaseError where another launch takes
    the study over: from then on, nothing of the study's is written.

    Args:
        study: to be applied.
        storage: where its cells are.
        address: of a Ray cluster; None: this machine.
        tracking_uri: of MLflow.
        console: where progress is shown.
        options: what this launch is asked for besides the file.
    """
    options = options or Options()
    check(study, storage, address=address, options=options)
    folder = storage.child("studies", study.name)
    with Lease(folder) as lease:
        claims = Claims(storage, study.name, lease)
        # again, now that nobody else can change it
        plan = make_plan(study, storage, options)
        lease.check()  # here and below: before anything of the study's is written after what may have taken long
        if plan.racing is not None:
            from simlap.study.racelog import record_race

            record_race(plan, claims)
        refused = _refused(plan)
        if refused or not plan.pending:
            plan.save()
            outcome = _reported(study, storage, ran=0, finished=not refused)
            outcome.budget, outcome.left = refused, left_behind(plan)
            outcome.shipped = ship_once(storage, study.name, tracking_uri)
            return outcome
        nodes = connect(address)
        check_resources(study, nodes)
        if address is not None:
            agree(address, storage)
        lease.check()
        if stale := to_rerun(plan):
            discard(storage, stale, claims)
            plan = make_plan(study, storage, options)
            lease.check()
        plan.save()
        announce(plan, console)
        with BackgroundShipper(storage, study.name, tracking_uri) as shipper:
            ran = len(plan.pending)
            try:
                preempt.listen()
                with preempt.AtWork():
                    plan, after, finished = _execute(plan, study, options, folder, nodes, address, console, claims)
            except (LostLeaseError, StorageFullError):
                shipper.abandon()
                raise
            outcome = _reported(study, storage, ran=ran, finished=finished)
            outcome.preempted = preempt.asked()
            outcome.shipped = shipper.finish()
        if plan.guard and not finished:
            outcome.budget = plan.guard.reached() or plan.guard.refused
        elif plan.held_back:
            outcome.finished, outcome.budget = False, _all_cells_begun(plan)
        lease.check()
        after.index.save()  # what is finished now need not be read again
        outcome.left = left_behind(after)
        return outcome


def _refused(plan: Plan) -> str | None:
    """What of the budget keeps all that is left from being begun, in words; None where it does not, or nothing is left."""
    if not plan.pending:
        return _all_cells_begun(plan)
    return plan.guard.reached() if plan.guard else None


def _all_cells_begun(plan: Plan) -> str | None:
    """In words: the budget's number of cells is what keeps others from being begun, and nothing else is to be done."""
    return f"{plan.guard.budget.cells} cells" if plan.guard and plan.held_back else None


def _reported(study: Study, storage: Storage, *, ran: int, finished: bool) -> Outcome:
    report = build(read_study(storage, study.name))
    folder = storage.child("studies", study.name)
    return Outcome(report, ran, finished, files=[folder.describe(path) for path in write_report(report, folder)])


def _execute(
    plan: Plan,
    study: Study,
    options: Options,
    folder: Storage,
    nodes: list[Node],
    address: str | None,
    console: Console,
    claims: Claims,
) -> tuple[Plan, Plan, bool]:
    """Run the plan. Returns it as it is once its searches have found what they look for, the plan of what is left then, and
    whether all that was pending was run."""
    # Tune is slow to import, and a study with nothing to do has no use for it
    from simlap.study.demand import cluster_demand
    from simlap.study.execute import run_plan, settle
    from simlap.study.progress import Progress
    from simlap.study.searching import run_searches

    def slots(resources: Resources) -> int:
        return check_placement(resources, nodes, file=str(plan.study.path))

    lease = claims.lease
    lease.check()
    settle(plan)
    demand = cluster_demand() if address is not None else None  # this machine has no autoscaler
    finished = complete = False
    events = EventLog(folder, lost=lease.is_lost)
    events.write("launch", pending=len(plan.pending), slots=slots(baseline_resources(plan.study)))
    try:
        with Progress(plan, console) as progress:

            def run(part: Plan) -> bool:
                all_run = run_plan(
                    part, progress=progress, events=events, retries=study.spec.retries, claims=claims, demand=demand
                )
                lease.check()
                return all_run

            def replanned(new: Plan) -> None:
                lease.check()
                progress.update(new)

            plan, tuned = run_searches(plan, study, options, run=run, replanned=replanned, events=events, claims=claims)
            finished = tuned and run(plan)
        after = make_plan(study, plan.storage, options)
        complete = finished and left_behind(after) is None
    finally:  # however it ended: whoever watches waits for this
        if demand is not None:
            demand.close()
        persist(lambda: events.write("launch_ended", finished=complete))
        persist(events.close)
    lease.check()
    return plan, after, finished
