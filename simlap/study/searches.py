"""The searches of a study in its `plan.json` and its events: what readers are told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simlap.study.plan import Plan
    from simlap.study.planned import PlannedCell
    from simlap.study.tuned import ArmSearch


def searches(plan: Plan) -> list[ArmSearch]:
    """The searches of a plan."""
    return plan.tuning.searches if plan.tuning else []


def saved_searches(plan: Plan) -> list[dict[str, Any]]:
    """Each search with its trials, and the arms that have their values from it."""
    tuning = plan.tuning
    if tuning is None:
        return []
    return [
        {
            "name": search.line,
            "arms": {
                arm.name: tuning.values(arm) for arm in plan.study.arms if tuning.of_arm.get(arm.name) is search
            },
            "of": search.of,
            "best": search.best and search.best.number,
            "value": search.best and search.best.value,
            "failed": search.reason,
            "trials": [
                {
                    "number": trial.number,
                    "values": trial.values,
                    "value": trial.value,
                    "over": trial.over,
                    "reason": trial.reason,
                    "cells": [
                        {"cell_id": chain.stages[-1].cell_id, "seed": chain.seed} for chain in trial.chains
                    ],
                }
                for trial in search.trials
            ],
        }
        for search in tuning.searches
    ]  # fmt: skip


def trial_cells(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of all trials in a `plan.json`, each once."""
    cells = [cell for search in plan.get("searches", []) for trial in search["trials"] for cell in trial["cells"]]
    return [*{cell["cell_id"]: cell for cell in cells}.values()]


def kept_trials(earlier: Mapping[str, Any], trials: Sequence[PlannedCell]) -> list[dict[str, Any]]:
    """Cells of trials that an earlier version of the file asked for, and this one does not. They are kept like removed arms."""
    now = {cell.cell_id for cell in trials}
    known = {cell["cell_id"]: cell for cell in (*earlier.get("kept_trials", []), *trial_cells(earlier))}
    return [cell for cell_id, cell in known.items() if cell_id not in now]


def decisions(plan: Plan) -> list[dict[str, Any]]:
    """What searches have decided: the fields of a `search_decision` event for each arm that has its values, or never will."""
    tuning = plan.tuning
    if tuning is None:
        return []
    found = []
    for arm in plan.study.arms:
        search = tuning.of_arm.get(arm.name)
        if search is not None and search.over:
            found.append({"arm": arm.name, "values": tuning.values(arm), **_outcome(search)})
    return found


def _outcome(search: ArmSearch) -> dict[str, Any]:
    """The fields that all arms of a search share."""
    failed = sum(trial.value is None for trial in search.trials)
    outcome = {"of": search.of, "failed": failed, "search": search.line}
    if search.best is None:
        return {**outcome, "reason": search.reason}
    return {**outcome, "value": search.best.value, "trial": search.best.number}
