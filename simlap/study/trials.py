"""Trials of searches as cells of a plan: those that are known, what they have come to, and what stands for later ones."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simlap.config import canonical_hash
from simlap.storage import Storage
from simlap.study.arms import Arm
from simlap.study.checks import CheckedStage
from simlap.study.index import CellFacts, Index
from simlap.study.stages import Chain
from simlap.study.tuned import Known, Tuning

if TYPE_CHECKING:
    from simlap.study.options import Options
    from simlap.study.planned import PlannedCell


@dataclass(frozen=True)
class TrialCell:
    """A cell of a trial, as plans have it."""

    chain: Chain
    line: str
    number: int
    selected: bool


def find_trials(tuning: Tuning, names: set[str]) -> dict[str, TrialCell]:
    """The cells of all trials by id, in order. A choice that comes twice is one cell, the first trial's.

    Args:
        tuning: of the study.
        names: of the arms that the launch is asked for.
    """
    found: dict[str, TrialCell] = {}
    for search in tuning.searches:
        selected = tuning.asks(search, names)
        for trial in search.trials:
            for chain in trial.chains:
                found.setdefault(chain.stages[-1].cell_id, TrialCell(chain, search.line, trial.number, selected))
    return found


def known_cells(
    index: Index,
    chains: Sequence[Chain],
    metric: str,
    options: Options,
    tried: frozenset[str],
    undecided: AbstractSet[str],
) -> dict[str, Known]:
    """What the cells of trials have come to, by id.

    Args:
        index: of the study.
        chains: of the cells.
        metric: that the study decides on.
        options: what the launch is asked for; a trial that is to be run again is not over.
        tried: cells that this launch has run.
        undecided: cells whose failure no launch has decided about.
    """
    from simlap.study.planned import action_of, facts_of, stale_cells

    facts = facts_of(index, chains, undecided)
    stale = stale_cells(chains, facts)
    known: dict[str, Known] = {}
    for chain in chains:
        cell_id = chain.stages[-1].cell_id
        one = facts[cell_id]
        action = action_of(one, False, stale.get(cell_id), options)
        if action == "done" or (action == "stale" and one.state == "done"):
            known[cell_id] = Known(True, one.metrics.get(metric), f"{metric} was not measured, or is not finite")
        elif action == "given_up" or (action == "failed" and cell_id in tried):
            known[cell_id] = Known(True, None, one.reason or "it failed")
        else:
            known[cell_id] = Known()
    return known


def later_cells(tuning: Tuning, storage: Storage, names: set[str]) -> list[PlannedCell]:
    """What comes after the results that searches wait for: more trials, then the cells of the arms that are tuned.

    Args:
        tuning: of the study.
        storage: of its cells.
        names: of the arms that the launch is asked for.
    """
    from simlap.study.planned import PlannedCell

    study = tuning.study
    later: list[PlannedCell] = []

    def add(arm: Arm, line: str, stage: CheckedStage, seed: int, trial: int | None, selected: bool) -> None:
        identity = canonical_hash(["later", study.name, line, seed, trial])
        cell = PlannedCell(
            identity, seed, line, line, arm, stage, "new", CellFacts(), None, 0, storage, selected,
            trial=trial, is_later=True,
        )  # fmt: skip
        later.append(cell)

    for search in tuning.searches:
        selected = tuning.asks(search, names)
        for number in range(len(search.trials) + 1, search.of + 1):
            for seed in search.seeds:
                add(search.arm, search.line, search.stages[-1], seed, number, selected)
    for seed in study.spec.seed_list():
        for arm in study.arms:
            if arm.name in tuning.waiting:
                add(arm, arm.name, tuning.waiting[arm.name][-1], seed, None, arm.name in names)
    return later
