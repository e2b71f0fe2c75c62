"""A study under `race`: what its cells are to the race, and what the race's standing makes of them. Pure; nothing is run here.

The standing is computed anew from the journals whenever somebody asks, so there is nothing to resume: a study that was killed, or
whose file was changed, has the decisions that its values give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from simlap.study.race import Cell, Entrants, Standing, race
from simlap.study.scheduling import Race

if TYPE_CHECKING:
    from simlap.study.planned import PlannedCell
    from simlap.study.spec import Study


@dataclass(frozen=True)
class Racing:
    """Where the race of a study stands."""

    rules: Race
    entrants: Entrants
    standing: Standing

    @property
    def over(self) -> bool:
        """Whether all is decided, and protected arms have all their seeds."""
        return not self.standing.needed

    @property
    def needed(self) -> dict[tuple[str, int], int]:
        """What the next look waits for: arm and seed -> epochs."""
        return {(need.arm, need.seed): need.epochs for need in self.standing.needed}

    @property
    def undecided(self) -> bool:
        """Whether any arm still races. The arm that others are compared with does not."""
        reference = self.entrants.baseline if self.rules.against == "baseline" else None
        return bool(self.entrants.epochs.keys() - {reference} - self.standing.verdicts.keys())

    def may_need(self, arm: str) -> bool:
        """Whether more of this arm's cells may be needed than are now."""
        if arm in self.entrants.protected:
            return True
        return self.undecided and arm not in self.standing.verdicts

    def seeds_of(self, arm: str) -> int:
        """How many of the planned seeds count for an arm: those of the look that decided it, else those asked for so far."""
        if (look := self.last_look(arm)) is not None:
            return self.standing.looks[look].seeds
        return sum(name == arm for name, _ in self.standing.asked)

    def last_look(self, arm: str) -> int | None:
        """The number of the last look at an arm; for the arm that others are compared with, of the last at the end."""
        looks = self.standing.looks
        if self.rules.against == "baseline" and arm == self.entrants.baseline:
            ends = [i for i, look in enumerate(looks) if look.epochs is None]
            return ends[-1] if ends else len(looks) - 1 if looks else None
        return next((i for i in reversed(range(len(looks))) if any(d.arm == arm for d in looks[i].decisions)), None)


class _Values(Mapping[int, float]):
    """The metric of a cell by epoch. Its journal is read only for epochs that the plan's facts do not have."""

    def __init__(self, cell: PlannedCell, metric: str, reached: int) -> None:
        self._cell, self._metric, self._reached = cell, metric, reached

    def __getitem__(self, epoch: int) -> float:
        if epoch > self._reached:
            raise KeyError(epoch)
        if epoch == self._cell.stage.experiment.train.epochs:
            return self._cell.facts.metrics[self._metric]
        row = next((row for row in self._cell.track[0] if row.epoch == epoch), None)
        if row is None:
            raise KeyError(epoch)
        return row.metrics[self._metric]

    def __iter__(self) -> Iterator[int]:
        return (epoch for epoch in range(1, self._reached + 1) if epoch in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def known(cell: PlannedCell, metric: str, tried: AbstractSet[str] = frozenset()) -> Cell:
    """What the race knows of a cell. It is at its last epoch only when it is done, with all protocols.

    Args:
        cell: as planned, or as it was read again.
        metric: that decides.
        tried: ids of cells that this launch has run: what of them has failed stays so.
    """
    facts, last = cell.facts, cell.stage.experiment.train.epochs
    if facts.state == "new" or cell.action == "rerun":
        return Cell()
    if facts.state == "done" and cell.action != "evaluate":
        return Cell(last, _Values(cell, metric, last))
    durable = last if facts.state == "done" else cell.track[1]
    reached = min(durable, last - 1)
    given_up = facts.state == "failed" and (cell.action == "given_up" or cell.cell_id in tried)
    return Cell(reached, _Values(cell, metric, reached), (facts.reason or "no reason given") if given_up else None)


def stand(
    study: Study,
    cells: Iterable[PlannedCell],
    tried: AbstractSet[str] = frozenset(),
    lost: Mapping[str, str] | None = None,
) -> Racing:
    """Replay the race of a study on what is there; `tried` as in `known`. `lost`: why an arm can have no cells, by its name."""
    spec = study.spec
    rules = cast("Race", spec.scheduler)
    (baseline,) = (arm.name for arm in study.arms if arm.baseline)
    entrants = Entrants(
        epochs={arm.name: arm.experiment.train.epochs for arm in study.arms},
        baseline=baseline,
        seeds=tuple(spec.seed_list()),
        mode=spec.metric.mode,
        protected=frozenset(arm.name for arm in study.arms if arm.protected and not arm.baseline),
    )
    table: dict[str, dict[int, Cell]] = {
        name: {seed: Cell(failed=reason) for seed in entrants.seeds} for name, reason in (lost or {}).items()
    }
    for cell in cells:
        table.setdefault(cell.line, {})[cell.seed] = known(cell, spec.metric.name, tried)
    return Racing(rules, entrants, race(rules, entrants, table))


def mark(racing: Racing, cells: Iterable[PlannedCell], stages: AbstractSet[str]) -> list[PlannedCell]:
    """The cells, with what the race makes of them: needed now (`until` its next look), perhaps needed later, or not at all.

    Args:
        racing: where it stands.
        cells: of the arms, with what is to be done with them were there no race.
        stages: ids of cells that others start from: never stopped, and run to their end where these need them.
    """
    needed = racing.needed
    return without_idle(
        _mark(racing, needed.get((cell.line, cell.seed)), cell, cell.cell_id in stages) for cell in cells
    )


def without_idle(cells: Iterable[PlannedCell]) -> list[PlannedCell]:
    """The cells, those that are needed perhaps not selected where nothing is to be run now: the next look waits for what this
    launch is to leave alone, and will not come."""
    marked = [*cells]
    if any(cell.pending and not cell.perhaps for cell in marked):
        return marked
    return [replace(cell, selected=False) if cell.perhaps else cell for cell in marked]


def _mark(racing: Racing, epochs: int | None, cell: PlannedCell, is_stage: bool) -> PlannedCell:
    if epochs is not None:
        until = epochs if epochs < cell.stage.experiment.train.epochs else None
        return replace(cell, until=None if is_stage else until, perhaps=False)
    if cell.action in ("done", "stale", "given_up"):
        return cell
    if racing.may_need(cell.line):
        return replace(cell, perhaps=cell.line not in racing.entrants.protected)
    if cell.action == "rerun":
        return replace(cell, perhaps=True)
    match cell.facts.state:
        case "done":
            return replace(cell, action="done")
        case "failed":
            return replace(cell, action="given_up")
        case "new":
            return replace(cell, action="spared")
        case _:
            return replace(cell, action="spared" if is_stage or cell.protected else "stopped")
