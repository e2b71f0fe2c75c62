"""`plan.json`: what a study was last applied as, from which views are read; and what earlier versions of its file had."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simlap.record import kept
from simlap.record.code import code_of
from simlap.record.journal import now_ms
from simlap.record.provenance import collect
from simlap.redact import hide_credentials
from simlap.storage import Storage
from simlap.study.searches import saved_searches
from simlap.study.spec import DeclaredEpoch, Study

if TYPE_CHECKING:
    from simlap.study.plan import Plan
    from simlap.study.planned import PlannedCell

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class KeptArm:
    """Cells that an earlier version of the file had under an arm, and this one has not: of a removed arm, a removed seed, or
    with other data or another base. They are kept, and are the study's again when the file has them again."""

    name: str
    cells: list[dict[str, Any]]
    """`cell_id` and `seed` of each, and the `fingerprint` of its data."""


def read_plan(folder: Storage) -> dict[str, Any]:
    """The study's `plan.json`; empty where it was never applied."""
    try:
        plan: dict[str, Any] = folder.read_json("plan.json")
    except FileNotFoundError:
        return {}
    return plan


def kept_arms(earlier: dict[str, Any], study: Study, cells: Sequence[PlannedCell]) -> list[KeptArm]:
    """What the earlier plan had, or had kept, and these cells are not; arms that it lists without cells too."""
    now = {cell.cell_id for cell in cells}
    names = {arm.name for arm in study.arms}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in (*earlier.get("kept", []), *earlier.get("arms", [])):
        cells_of = found.setdefault(arm["name"], {})
        cells_of.update({cell["cell_id"]: cell for cell in arm["cells"] if cell["cell_id"] not in now})
    return [KeptArm(name, [*had.values()]) for name, had in found.items() if had or name not in names]


def superseded(plan: Plan) -> dict[str, int]:
    """By arm: how many finished or begun cells it has from before its data changed."""
    now = {(cell.line, cell.seed): cell.fingerprint for cell in plan.cells}
    return kept.superseded(((arm.name, arm.cells) for arm in plan.kept), now, plan.index.begun)


def save_plan(plan: Plan) -> None:
    """Write `plan.json`."""
    plan.storage.child("studies", plan.study.name).write_json("plan.json", _json(plan))


def _json(plan: Plan) -> dict[str, Any]:
    from simlap.study.planned import protocols

    spec = plan.study.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "t": now_ms(),
        "metric": spec.metric.name,
        "mode": spec.metric.mode,
        "report_metric": spec.metric.report,
        "epochs": max(arm.experiment.train.epochs for arm in plan.study.arms),
        "seeds": spec.seed_list(),
        "factors": {name: list(factor.named()) for name, factor in spec.factors.items()},
        "scheduler": spec.scheduler.kind,
        "budget": spec.budget.model_dump(mode="json", exclude_none=True) if spec.budget else {},
        "claims": spec.claims,
        "compare": spec.compare.epoch if isinstance(spec.compare, DeclaredEpoch) else spec.compare,
        "margin": spec.margin,
        "sampled": {name: factor.sample.scale for name, factor in spec.factors.items() if factor.sample is not None},
        "declared_late": _late(plan),
        "validation": plan.study.base.data.validation != "none",
        "command": hide_credentials(shlex.join(["simlap", *sys.argv[1:]])),
        "provenance": {**collect(), "data_fingerprint": _fingerprint(plan)},
        "text": plan.study.text,
        "stages": [
            {
                "name": stage.line,
                "cell_id": stage.cell_id,
                "seed": stage.seed,
                "used_by": plan.uses[stage.cell_id].cell_ids,
                "code": code_of(stage.stage.experiment),
            }
            for stage in plan.stages
        ],
        "arms": [
            {
                "name": arm.name,
                "levels": arm.levels,
                "protected": arm.protected,
                "baseline": arm.baseline,
                "evaluate": protocols(plan.of_arm(arm)[0].stage.experiment if plan.of_arm(arm) else arm.experiment),
                "code": code_of(arm.experiment),
                "cells": [_cell(cell) for cell in plan.of_arm(arm)],
            }
            for arm in plan.study.arms
        ],
        "searches": saved_searches(plan),
        "kept_trials": plan.kept_trials,
        "kept": [{"name": arm.name, "cells": arm.cells} for arm in plan.kept],
    }


def _late(plan: Plan) -> list[str]:
    """What the file declares, or does not any more, only since there are results. It stays late for as long as it is there."""
    spec, earlier = plan.study.spec, read_plan(plan.storage.child("studies", plan.study.name))
    if not earlier or not any(cell.facts.epoch for cell in plan.cells):
        # results that another study has come to do not count before this one was applied: nobody has seen them as its own
        return []
    rule = spec.compare.epoch if isinstance(spec.compare, DeclaredEpoch) else spec.compare
    now = [f"claim {claim}" for claim in spec.claims] + [f"compare {rule}", f"margin {spec.margin}"]
    before = [f"claim {claim}" for claim in earlier["claims"]]
    before += [f"compare {earlier.get('compare', 'common')}", f"margin {earlier.get('margin')}"]
    if (
        spec.claims
    ):  # they are about this metric and these seeds: seeds that are added until one holds make it hold too often
        now += [f"metric {spec.metric.name}, {spec.metric.report}", _seeds_text(spec.seed_list())]
        before += [f"metric {earlier['metric']}, {earlier['report_metric']}", _seeds_text(earlier["seeds"])]
    late = earlier.get("declared_late", [])
    gone = [f"no longer: {text}" for text in before if text.startswith("claim ") and text not in now]
    gone += [text for text in late if text.startswith("no longer: ") and text.removeprefix("no longer: ") not in now]
    return [*(text for text in now if text in late or text not in before), *gone]


def _seeds_text(seeds: list[int]) -> str:
    whole = seeds == [*range(len(seeds))]
    return f"seeds: {len(seeds)}" if whole else f"seeds: {', '.join(map(str, seeds))}"


def _fingerprint(plan: Plan) -> str | None:
    """Of the data; None where no cell is known yet, nor will be."""
    return next((cell.fingerprint for cell in (*plan.cells, *plan.trials, *plan.later)), None)


def _cell(cell: PlannedCell) -> dict[str, Any]:
    return {"cell_id": cell.cell_id, "seed": cell.seed, "fingerprint": cell.fingerprint}
