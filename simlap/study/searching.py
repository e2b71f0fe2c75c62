"""Runs the searches of a study, batch by batch, before its arms are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simlap.study.claims import Claims
from simlap.study.events import ENVELOPE, EventLog, persist, read_events
from simlap.study.options import Options
from simlap.study.plan import Plan, make_plan
from simlap.study.scheduling import NoScheduler
from simlap.study.searches import decisions, searches
from simlap.study.spec import Study
from simlap.study.stale import discard, to_rerun


def run_searches(
    plan: Plan,
    study: Study,
    options: Options,
    *,
    run: Callable[[Plan], bool],
    replanned: Callable[[Plan], None],
    events: EventLog,
    claims: Claims | None = None,
) -> tuple[Plan, bool]:
    """Run trials until every search is over. Returns the plan with the arms' cells then, and whether it came to that.

    The pending trials of all searches (a batch of each) run side by side; then the study is planned anew from their results.

    Args:
        plan: with trials to be run, saved.
        study: as its file has it.
        options: what the launch is asked for.
        run: runs a plan; False where something is left to run.
        replanned: told of each new plan, before it is saved.
        events: of the study.
        claims: against other launches that have the same cells.
    """
    if not searches(plan):
        return plan, True
    folder = plan.storage.child("studies", study.name)
    written = {event["arm"]: _facts(event) for event in read_events(folder) if event["type"] == "search_decision"}
    tried: set[str] = set()
    while True:
        for decision in decisions(plan):
            if written.get(decision["arm"]) != decision:
                written[decision["arm"]] = decision
                persist(lambda decision=decision: events.write("search_decision", **decision))  # type: ignore[misc]
        pending = [cell for cell in plan.trials if cell.pending]
        if not pending:
            return plan, True
        asked = {search.line: len(search.trials) for search in searches(plan) if not search.over}
        persist(lambda asked=asked: events.write("search_asked", trials=asked))  # type: ignore[misc]
        batch = _trials_only(plan)
        if not run(batch):
            return plan, False
        tried |= {cell.cell_id for cell in batch.pending}
        plan = _again(plan, study, options, frozenset(tried), claims)
        replanned(plan)
        plan.save()


def _again(plan: Plan, study: Study, options: Options, tried: frozenset[str], claims: Claims | None) -> Plan:
    """The plan as results have it now. The budget goes on being counted by the guard that saw the trials run."""
    made = make_plan(study, plan.storage, options, tried=tried)
    if stale := to_rerun(made):
        discard(plan.storage, stale, claims)
        made = make_plan(study, plan.storage, options, tried=tried)
    return replace(made, guard=plan.guard)


def _trials_only(plan: Plan) -> Plan:
    """The pending trials with the stages that they start from, as a plan of their own: every one runs to its end."""
    trials = {cell.cell_id for cell in plan.trials}
    stages = [stage for stage in plan.stages if trials & {*plan.uses[stage.cell_id].cell_ids}]
    spec = plan.study.spec.model_copy(update={"scheduler": NoScheduler(kind="none")})
    study = replace(plan.study, spec=spec)
    return replace(plan, study=study, cells=plan.trials, trials=[], later=[], stages=stages, racing=None, _by_arm={})


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what the log adds."""
    return {key: value for key, value in event.items() if key not in ENVELOPE}
