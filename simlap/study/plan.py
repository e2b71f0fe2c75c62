"""Reconcile a study file with what is there: which cells are new, done, to be resumed, failed, stale or removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from simlap.errors import ConfigError
from simlap.storage import Storage
from simlap.study.arms import Arm
from simlap.study.budget import Budget, BudgetGuard, Spending, spending
from simlap.study.checks import check_arms, name_stages
from simlap.study.estimate import device_hours
from simlap.study.events import read_events, stopped_cells, undecided_cells
from simlap.study.index import Index
from simlap.study.options import Options, chosen_arms, with_seeds
from simlap.study.planned import Action, PlannedCell, action_of, facts_of, stale_cells
from simlap.study.reach import check_reach
from simlap.study.saved import KeptArm, kept_arms, read_plan, save_plan
from simlap.study.scheduling import Race
from simlap.study.searches import kept_trials
from simlap.study.spec import Study
from simlap.study.stages import Chain, Use, blocked_cells, find_uses, needed_stages
from simlap.study.trials import find_trials, known_cells, later_cells
from simlap.study.tuned import Tuning, tune

if TYPE_CHECKING:
    from simlap.study.racing import Racing


@dataclass(frozen=True)
class Plan:
    """All cells of a study, seed by seed, so that every arm has a result early."""

    study: Study
    storage: Storage
    cells: list[PlannedCell]
    stages: list[PlannedCell]
    """What cells start from, where it is no arm's own cell; earlier ones first."""
    uses: dict[str, Use]
    """By the cell id of a stage, whether or not it is an arm's own cell: who starts from it."""
    kept: list[KeptArm]
    """What earlier versions of the file had, and is kept."""
    spent: Spending
    """What earlier launches of this study took."""
    index: Index
    guard: BudgetGuard | None = None
    """Asked before cells start and while they run, where the study has a budget."""
    held_back: int = 0
    """Cells that the budget's number of cells leaves for a larger one."""
    racing: Racing | None = None
    """Where the race stands, where the scheduler is one."""
    tuning: Tuning | None = None
    """What the study's searches have come to. Arms whose values they still have to find have no cells yet."""
    trials: list[PlannedCell] = field(default_factory=list)
    """Of searches, as far as they are known: the next ones depend on the results of these."""
    later: list[PlannedCell] = field(default_factory=list)
    """Stand for the trials and the arms' cells that are not known yet: they can be counted, and nothing else."""
    kept_trials: list[dict[str, Any]] = field(default_factory=list)
    """`cell_id` and `seed` of trials that earlier versions of the file had."""
    in_the_way: frozenset[str] = frozenset()
    """Ids of unfinished stages that other code has begun: what starts from them is left alone, as they are."""
    _by_arm: dict[str, list[PlannedCell]] = field(default_factory=dict)

    @property
    def pending(self) -> list[PlannedCell]:
        return [cell for cell in (*self.stages, *self.trials, *self.cells) if cell.pending]

    @property
    def everything(self) -> list[PlannedCell]:
        """All that the study runs, known or not."""
        return [*self.stages, *self.trials, *self.cells, *self.later]

    @property
    def removed(self) -> list[str]:
        """Arms that an earlier version of the file had."""
        names = {arm.name for arm in self.study.arms}
        return [arm.name for arm in self.kept if arm.name not in names]

    def of_arm(self, arm: Arm) -> list[PlannedCell]:
        if not self._by_arm:
            for cell in self.cells:
                self._by_arm.setdefault(cell.line, []).append(cell)
        return self._by_arm.get(arm.name, [])

    def waves(self) -> list[list[PlannedCell]]:
        """The pending stages in the order in which they have to run: each wave needs only those before it."""
        stages = [cell for cell in self.pending if cell.cell_id in self.uses and cell.action != "evaluate"]
        levels = sorted({cell.level for cell in stages})
        return [[cell for cell in stages if cell.level == level] for level in levels]

    def reread(self, cell_ids: Iterable[str]) -> Plan:
        """The plan after these stages have been run, to the end or to a failure."""
        ids = set(cell_ids)

        def now(cell: PlannedCell) -> PlannedCell:
            if cell.cell_id not in ids:
                return cell
            cell = cell.reread()
            return replace(cell, action="done" if cell.facts.state == "done" else "failed")

        return replace(self, cells=[*map(now, self.cells)], stages=[*map(now, self.stages)], _by_arm={})

    def device_hours(self) -> float | None:
        """Estimate for what is pending from the epochs run so far; None where nothing has run yet."""
        return device_hours(self.everything).total

    def save(self) -> None:
        """Write `plan.json`, from which views of the study are read, and the index."""
        save_plan(self)
        self.index.save()


def make_plan(
    study: Study, storage: Storage, options: Options | None = None, *, tried: frozenset[str] = frozenset()
) -> Plan:
    """Check the data of every arm, name every cell, and look at what is there. Raises UserError; starts nothing.

    Args:
        study: as its file has it.
        storage: where its cells are.
        options: what the launch is asked for.
        tried: cells that this launch has run: those that failed are not tried again.
    """
    options = options or Options()
    study = with_seeds(study, options.seeds)
    check_reach(study)
    chosen = chosen_arms(study, options.only)
    only = {arm.name for arm in study.arms if id(arm) in chosen}
    folder = storage.child("studies", study.name)
    events = read_events(folder)
    scheduler = study.spec.scheduler
    # what a race stops follows from what it decided, which is replayed
    stopped = stopped_cells(events, scheduler.model_dump()) if scheduler.kind == "asha" else {}
    undecided = undecided_cells(events)
    index = Index(storage, folder)
    tuning = tune(study, lambda chains: known_cells(index, chains, study.spec.metric.name, options, tried, undecided))
    study = tuning.study
    trials = find_trials(tuning, only)
    chains = [*(trial.chain for trial in trials.values()), *_chains(study, tuning.ready)]
    uses = find_uses(chains)
    facts = facts_of(index, chains, undecided)
    stale = stale_cells(chains, facts)
    own = {chain.stages[-1].cell_id for chain in chains}

    def planned(chain: Chain, level: int) -> PlannedCell:
        stage = chain.stages[level]
        arm = chain.arm if stage is chain.stages[-1] else None
        known = facts[stage.cell_id]
        # others start from a stage's end, so it has to come to one
        protected = arm is None or arm.protected or stage.cell_id in uses
        trial = trials.get(stage.cell_id) if arm is not None else None
        old = stale.get(stage.cell_id)
        is_stopped = stage.cell_id in stopped and not protected
        action = action_of(known, is_stopped, old, options)
        if action == "failed" and stage.cell_id in tried:
            action = "given_up"
        if arm is None and action == "evaluate":
            action = "done"  # only its weights are asked for
        return PlannedCell(
            stage.cell_id, chain.seed, trial.line if trial else arm.name if arm else uses[stage.cell_id].name,
            f"{study.name}/{arm.name}" if arm else stage.checked.experiment.name,
            arm, stage.checked, action, known, stage.start, level, storage,
            selected=trial.selected if trial else chain.arm.name in only, trial=trial.number if trial else None,
            stale=old == "own", is_stopped=is_stopped,
        )  # fmt: skip

    cells = [planned(chain, len(chain.stages) - 1) for chain in chains]  # those of trials first
    stages: dict[str, PlannedCell] = {}
    for chain in chains:
        for level, stage in enumerate(chain.stages[:-1]):
            if stage.cell_id not in stages and stage.cell_id not in own:
                stages[stage.cell_id] = replace(planned(chain, level), selected=True)
    budget = study.spec.budget
    spent = spending(events, index)
    racing = None
    if isinstance(scheduler, Race):
        from simlap.study.racing import mark, stand, without_idle  # scipy takes a while to import

        own_cells = cells[len(trials) :]
        racing = stand(study, own_cells, lost=tuning.hopeless)
        cells = [*cells[: len(trials)], *mark(racing, own_cells, uses.keys())]
    before = sorted(stages.values(), key=lambda stage: stage.level)
    blocked = blocked_cells([*cells, *before], storage)
    in_the_way = frozenset(cell_id for found in blocked.values() for cell_id in found)
    cells = [replace(cell, selected=False) if cell.cell_id in blocked else cell for cell in cells]
    if racing is not None:
        cells = [*cells[: len(trials)], *without_idle(cells[len(trials) :])]
    cells, held_back = _within(cells, budget, spent)
    cells, before = _with_stages(cells, before, storage, tried, in_the_way)
    guard = BudgetGuard(budget, spent) if budget else None
    own_trials, own_cells = cells[: len(trials)], cells[len(trials) :]
    earlier = read_plan(folder)
    kept = kept_arms(earlier, study, own_cells)
    return Plan(
        study, storage, own_cells, before, uses, kept, spent, index, guard, held_back, racing, tuning, own_trials,
        later_cells(tuning, storage, only), kept_trials(earlier, own_trials), in_the_way,
    )  # fmt: skip


def _chains(study: Study, arms: Sequence[Arm]) -> list[Chain]:
    """The stages of every cell of these arms, checked and named."""
    checked = check_arms(arms, str(study.path))
    seen: dict[str, str] = {}
    chains = []
    for number, seed in enumerate(study.spec.seed_list()):
        for arm, stages in zip(arms, checked, strict=True):
            named = name_stages(stages, seed)
            identity = named[-1].cell_id
            if number == 0 and identity in seen:  # for one seed, and so for all
                raise ConfigError(
                    f"is the same experiment as arm {seen[identity]!r}: its factors change nothing that training depends on",
                    file=str(study.path),
                    key=f"arm {arm.name}",
                )
            seen[identity] = arm.name
            chains.append(Chain(seed, arm, named))
    return chains


def _with_stages(
    cells: list[PlannedCell],
    stages: list[PlannedCell],
    storage: Storage,
    tried: frozenset[str],
    in_the_way: frozenset[str],
) -> tuple[list[PlannedCell], list[PlannedCell]]:
    """The cells and the stages, with what is to be done with those that others start from."""
    everything = [*cells, *stages]
    needed = needed_stages(everything, storage)
    surely = needed
    if any(cell.perhaps for cell in cells):  # what only these start from is needed perhaps, too
        surely = needed_stages([replace(c, selected=c.selected and not c.perhaps) for c in everything], storage)

    def now(cell: PlannedCell) -> PlannedCell:
        alone = cell.arm is not None and cell.pending and not cell.perhaps
        wanted = cell if cell.cell_id in tried else _needed(cell)
        return replace(wanted, perhaps=cell.cell_id not in surely and not alone)

    def rest(stage: PlannedCell) -> PlannedCell:
        return stage if stage.cell_id in in_the_way else _unneeded(stage)

    return (
        [now(cell) if cell.cell_id in needed else cell for cell in cells],
        [now(stage) if stage.cell_id in needed else rest(stage) for stage in stages],
    )


def _needed(stage: PlannedCell) -> PlannedCell:
    """A stage that something to be run starts from: it has to come to its end, asked for or not. (Where other code has begun it,
    nothing that is to be run starts from it: `blocked_cells`.)"""
    again: dict[Action, Action] = {"given_up": "failed", "spared": "new" if stage.facts.state == "new" else "resume"}
    return replace(stage, selected=True, action=again.get(stage.action, stage.action))


def _unneeded(stage: PlannedCell) -> PlannedCell:
    """A stage that nothing waits for: nothing is to be done, whatever it is."""
    if stage.facts.state == "failed":
        return replace(stage, action="given_up")
    is_stale = stage.facts.state == "done" and stage.action in ("stale", "rerun")
    return replace(stage, action="stale" if is_stale else "done")


def _within(
    cells: list[PlannedCell], budget: Budget | None, spent: Spending
) -> tuple[list[PlannedCell], int]:  # fmt: skip
    """The cells, those beyond the budget's number not selected; and how many these are."""
    if budget is None or budget.cells is None:
        return cells, 0
    room = budget.cells - len(spent.cells)
    result, held_back = [], 0
    for cell in cells:
        if cell.pending and not cell.perhaps and cell.cell_id not in spent.cells:
            room -= 1
            if room < 0:
                held_back += 1
                cell = replace(cell, selected=False)
        result.append(cell)
    return result, held_back
