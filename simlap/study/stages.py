"""Stages that cells share: who starts from which, what they are called, and which still have to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simlap.record.journal import cell_storage
from simlap.storage import Storage
from simlap.study.arms import Arm, arm_name
from simlap.study.checks import NamedStage
from simlap.train import manifest

if TYPE_CHECKING:
    from simlap.study.planned import PlannedCell


@dataclass(frozen=True)
class Chain:
    """A cell with everything that runs before it."""

    seed: int
    arm: Arm
    stages: tuple[NamedStage, ...]
    """In the order they run; the cell itself last."""


@dataclass(frozen=True)
class Use:
    """Who needs a stage."""

    name: str
    """`pretrain`, `pretrain.pretrain` for the stage before it; followed by the levels that only its users have."""
    cell_ids: list[str]
    """Arms' cells that start from it, directly or through other stages."""


def find_uses(chains: Sequence[Chain]) -> dict[str, Use]:
    """The uses of every earlier stage, by its cell id."""
    users: dict[str, list[Chain]] = {}
    for chain in chains:
        for stage in chain.stages[:-1]:
            users.setdefault(stage.cell_id, []).append(chain)
    arms = [*{id(chain.arm): chain.arm for chain in chains}.values()]
    return {
        cell_id: Use(_name(cell_id, found, arms), [chain.stages[-1].cell_id for chain in found])
        for cell_id, found in users.items()
    }


def broken_by(stage: PlannedCell, reason: str | None) -> str:
    """Why what starts from a stage that failed fails."""
    return f"{stage.line} · seed {stage.seed} ({stage.cell_id}), which it starts from, failed: {reason}"


def goes_on(cell: PlannedCell, storage: Storage) -> bool:
    """Whether it has a valid checkpoint of its own, and so does without the stage that it started from."""
    if cell.facts.state == "new" or cell.action == "rerun":
        return False
    checkpoints = cell_storage(storage, cell.cell_id).child("checkpoints")
    return any(_is_valid(checkpoints, name) for name in manifest.names(checkpoints))


def _is_valid(checkpoints: Storage, name: str) -> bool:
    """As `CheckpointStore.load`, which needs torch."""
    try:
        manifest.read_verified(checkpoints, name)
    except manifest.DAMAGED:
        return False
    return True


def needed_stages(cells: Sequence[PlannedCell], storage: Storage) -> set[str]:
    """Cell ids of what has to be run because a cell that is still to be trained starts from it."""
    return {stage.cell_id for _, before in _waiting(cells, storage) for stage in before}


def blocked_cells(cells: Sequence[PlannedCell], storage: Storage) -> dict[str, set[str]]:
    """Cell ids of what cannot start, each with those of what is in its way.

    That is stages that it starts from, that other code has begun, and that are left where they stand until somebody asks for them
    to be run anew.
    """
    left = {
        cell.cell_id
        for cell in cells
        if cell.stale and cell.facts.state != "done" and cell.action in ("stale", "given_up")
    }
    if not left:
        return {}
    waiting = ((cell.cell_id, left & {stage.cell_id for stage in before}) for cell, before in _waiting(cells, storage))
    return {cell_id: in_the_way for cell_id, in_the_way in waiting if in_the_way}


def _waiting(cells: Sequence[PlannedCell], storage: Storage) -> Iterator[tuple[PlannedCell, list[PlannedCell]]]:
    """The cells that are still to be trained, each with the stages that have to be run before."""
    by_id = {cell.cell_id: cell for cell in cells}
    for cell in cells:
        if cell.arm is None or not cell.pending or cell.action == "evaluate":
            continue
        before: list[PlannedCell] = []
        last = cell
        while last.start in by_id and not _stands(by_id[last.start]) and not goes_on(last, storage):
            last = by_id[last.start]
            before.append(last)
        if before:
            yield cell, before


def _stands(stage: PlannedCell) -> bool:
    """Whether its end is there to start from."""
    return stage.facts.state == "done" and stage.action != "rerun"


def _name(cell_id: str, users: Sequence[Chain], arms: Sequence[Arm]) -> str:
    before = min(len(c.stages) - 1 - [s.cell_id for s in c.stages].index(cell_id) for c in users)
    shared = {
        factor: level
        for factor, level in users[0].arm.levels.items()
        if all(chain.arm.levels.get(factor) == level for chain in users)
        and any(arm.levels.get(factor) != level for arm in arms)
    }
    return " ".join(part for part in (".".join(["pretrain"] * before), arm_name(shared)) if part)
