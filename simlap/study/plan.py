"""Reconcile a study file with what is there: which cells are new, done, to be resumed, failed, stale or removed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from simlap.config import Experiment
from simlap.errors import ConfigError
from simlap.record.code import code_of
from simlap.record.journal import read_cell, read_track
from simlap.record.view import CellView, EpochRow
from simlap.storage import Storage
from simlap.study.arms import Arm
from simlap.study.budget import Budget, BudgetGuard, Spending, spending
from simlap.study.checks import CheckedStage, check_arms, name_stages
from simlap.study.estimate import device_hours
from simlap.study.events import read_events, stopped_cells, undecided_cells
from simlap.study.index import CellFacts, Index, Wanted, read_facts
from simlap.study.reach import check_reach
from simlap.study.saved import KeptArm, kept_arms, read_plan, save_plan
from simlap.study.scheduling import Race
from simlap.study.searches import kept_trials
from simlap.study.spec import Study
from simlap.study.stages import Chain, Use, find_uses, needed_stages
from simlap.study.trials import find_trials, known_cells, later_cells
from simlap.study.tuned import Tuning, tune

if TYPE_CHECKING:
    from simlap.study.racing import Racing

Action = Literal["new", "done", "resume", "evaluate", "stopped", "failed", "given_up", "stale", "rerun", "spared"]
"""`failed` is run again, `given_up` (failed too) is left alone; `stale` is kept as it is, `rerun` (stale too) is run anew;
`spared` is not needed by the race, begun or not."""
SYMBOLS: dict[Action, str] = {
    "new": "+", "done": "=", "resume": ">", "evaluate": ">", "stopped": "=", "failed": "!", "given_up": "!", "stale": "~",
    "rerun": "~", "spared": ".",
}  # fmt: skip
"""As `simlap plan` shows them; a stopped cell is done for this study."""
_AT_REST = ("done", "stopped", "given_up", "stale", "spared")


@dataclass(frozen=True)
class Options:
    """What a launch is asked for besides the study file."""

    only: tuple[str, ...] = ()
    """Arms that have all these levels, `factor=level` with shell wildcards; empty: all arms."""
    retry_failed: bool = False
    """Run failed cells again, from their last checkpoint."""
    rerun_stale: bool = False
    """Discard what other code computed, and run it anew."""
    seeds: int | None = None
    """At least so many seeds."""


@dataclass(frozen=True)
class PlannedCell:
    """A run that this study needs: an arm's cell, or an earlier stage of some; and what is to be done with it."""

    cell_id: str
    seed: int
    line: str
    """The arm's name, or the stage's."""
    name: str
    """Of its experiment."""
    arm: Arm | None
    """None for a stage that is no arm's own cell."""
    stage: CheckedStage
    action: Action
    facts: CellFacts
    """What is known of it without its journal."""
    start: str | None
    """Cell id of the stage it starts from, or `weights:` and their fingerprint."""
    level: int
    """How many stages come before it."""
    storage: Storage
    selected: bool = True
    """False where this launch is to leave it alone, whatever there is to do."""
    until: int | None = None
    """An epoch before the last at which it pauses, for the race to look at."""
    perhaps: bool = False
    """Whether it is run only if the race comes to need it."""
    trial: int | None = None
    """Its number, where it is a trial of a search."""
    is_later: bool = False
    """Whether it only stands for one that is not known yet, and whose id is not this one's."""

    @cached_property
    def experiment(self) -> Experiment:
        return self.stage.experiment.with_seed(self.seed).model_copy(update={"name": self.name})

    @cached_property
    def view(self) -> CellView:
        """Everything its journal says; read when it is first asked for."""
        evaluate = protocols(self.stage.experiment) if self.arm is not None else None
        return read_cell(self.storage, self.cell_id, seed=self.seed, evaluate=evaluate)

    @cached_property
    def track(self) -> tuple[list[EpochRow], int]:
        """Its rows, and how many of its epochs are durable: what the race reads of many cells."""
        return read_track(self.storage, self.cell_id)

    def reread(self) -> PlannedCell:
        """The cell as it is now; whoever asks this one for its view is told what it was."""
        wanted = Wanted.of(self.stage.experiment.evaluate)
        return replace(self, facts=read_facts(self.storage, self.cell_id, wanted))

    @property
    def fingerprint(self) -> str:
        """Of its dataset."""
        return self.stage.fingerprint

    @property
    def pending(self) -> bool:
        return self.selected and self.action not in _AT_REST

    @property
    def epochs_left(self) -> int:
        if not self.pending:
            return 0
        return self.stage.experiment.train.epochs - (0 if self.action == "rerun" else self.facts.epoch)

    @property
    def protected(self) -> bool:
        """Whether no scheduler may stop it."""
        return self.arm is None or self.arm.protected

    @property
    def place(self) -> dict[str, Any]:
        """What events call it."""
        kind = "stage" if self.arm is None else "arm" if self.trial is None else "search"
        return {"cell_id": self.cell_id, kind: self.line} | ({} if self.trial is None else {"trial": self.trial})


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
    chosen = _only(study, options.only)
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
        action = action_of(known, stage.cell_id in stopped and not protected, stage.cell_id in stale, options)
        if action == "failed" and stage.cell_id in tried:
            action = "given_up"
        if arm is None and action == "evaluate":
            action = "done"  # only its weights are asked for
        return PlannedCell(
            stage.cell_id, chain.seed, trial.line if trial else arm.name if arm else uses[stage.cell_id].name,
            f"{study.name}/{arm.name}" if arm else stage.checked.experiment.name,
            arm, stage.checked, action, known, stage.start, level, storage,
            selected=trial.selected if trial else chain.arm.name in only, trial=trial.number if trial else None,
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
    if isinstance(scheduler, Race) and not tuning.waiting:
        from simlap.study.racing import mark, stand  # scipy takes a while to import

        own_cells = cells[len(trials) :]
        racing = stand(study, own_cells, lost=tuning.hopeless)
        cells = [*cells[: len(trials)], *mark(racing, own_cells, uses.keys())]
    cells, held_back = _within(cells, budget, spent)
    cells, before = _with_stages(cells, sorted(stages.values(), key=lambda stage: stage.level), storage)
    guard = BudgetGuard(budget, spent) if budget else None
    own_trials, own_cells = cells[: len(trials)], cells[len(trials) :]
    earlier = read_plan(folder)
    kept = kept_arms(earlier, study, own_cells)
    return Plan(
        study, storage, own_cells, before, uses, kept, spent, index, guard, held_back, racing, tuning, own_trials,
        later_cells(tuning, storage, only), kept_trials(earlier, own_trials),
    )  # fmt: skip


def with_seeds(study: Study, seeds: int | None) -> Study:
    """The study with at least so many seeds: those of the file, then the smallest numbers that are not among them."""
    given = study.spec.seed_list()
    if seeds is None or seeds <= len(given):
        return study
    spare = (number for number in range(seeds + len(given)) if number not in given)
    more = [*given, *(next(spare) for _ in range(seeds - len(given)))]
    return replace(study, spec=study.spec.model_copy(update={"seeds": more}))


def protocols(experiment: Experiment) -> list[dict[str, Any]]:
    """What an experiment is evaluated with, as plain values."""
    return [evaluation.model_dump(mode="json") for evaluation in experiment.evaluate]


def _only(study: Study, patterns: Sequence[str]) -> set[int]:
    """The ids of the arms that match all patterns (of one factor: any)."""
    asked: dict[str, list[str]] = {}
    for pattern in (part for text in patterns for part in text.split()):
        factor, equals, level = pattern.partition("=")
        if not equals:
            raise ConfigError("is written factor=level", file="command line", key="--only", value=pattern)
        if factor not in study.spec.factors:
            choices = list(study.spec.factors)
            raise ConfigError("no such factor", file="command line", key="--only", value=factor, choices=choices)
        levels = list(dict.fromkeys(arm.levels[factor] for arm in study.arms if factor in arm.levels))
        if not fnmatch.filter(levels, level):
            key = f"--only {factor}"
            raise ConfigError("no arm has such a level", file="command line", key=key, value=level, choices=levels)
        asked.setdefault(factor, []).append(level)
    chosen = {
        id(arm)
        for arm in study.arms
        if all(any(fnmatch.fnmatchcase(arm.levels.get(f, ""), one) for one in any_of) for f, any_of in asked.items())
    }
    if not chosen:
        raise ConfigError(
            "no arm has all these levels", file="command line", key="--only", value=" ".join(patterns),
            choices=[arm.name for arm in study.arms[:20]],
        )  # fmt: skip
    return chosen


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


def facts_of(index: Index, chains: Sequence[Chain], undecided: AbstractSet[str]) -> dict[str, CellFacts]:
    """What is known of every stage of these cells, by id.

    A failure counts once a launch has decided that it is not to be tried again; one that was killed before has not (`undecided`).
    """
    wanted: dict[str, Wanted] = {}
    made: dict[int, Wanted] = {}  # one for all that share their protocols, which the chains hold
    for last in (False, True):  # where a stage is an arm too, the arm's protocols are wanted
        for chain in chains:
            for stage in chain.stages[-1:] if last else chain.stages[:-1]:
                evaluate = stage.checked.experiment.evaluate
                if id(evaluate) not in made:
                    made[id(evaluate)] = Wanted.of(evaluate)
                wanted[stage.cell_id] = made[id(evaluate)]
    return {
        cell_id: replace(known, state="interrupted") if known.state == "failed" and cell_id in undecided else known
        for cell_id, known in index.facts(wanted).items()
    }


def stale_cells(chains: Sequence[Chain], facts: dict[str, CellFacts]) -> set[str]:
    """Finished cells that other code computed, or that started from one of them."""
    codes: dict[int, str] = {}  # one for all seeds
    stale: set[str] = set()
    for chain in chains:
        for stage in chain.stages:
            known = facts[stage.cell_id]
            if known.state != "done":
                continue
            if id(stage.checked) not in codes:
                codes[id(stage.checked)] = code_of(stage.checked.experiment)
            if known.code not in (None, codes[id(stage.checked)]) or stage.start in stale:
                stale.add(stage.cell_id)
    return stale


def action_of(facts: CellFacts, stopped: bool, stale: bool, options: Options) -> Action:
    """What is to be done with a cell.

    Args:
        facts: what is known of it.
        stopped: by the study's scheduler, which may stop it.
        stale: finished by other code.
        options: what the launch is asked for.
    """
    match facts.state:
        case "new":
            return "new"
        case "done":
            if stale:
                return "rerun" if options.rerun_stale else "stale"
            return "done" if facts.evaluated is not None else "evaluate"
        case "failed":
            return "failed" if options.retry_failed else "given_up"
        case _:
            return "stopped" if stopped else "resume"


def _with_stages(
    cells: list[PlannedCell], stages: list[PlannedCell], storage: Storage
) -> tuple[list[PlannedCell], list[PlannedCell]]:  # fmt: skip
    """The cells and the stages, with what is to be done with those that others start from."""
    everything = [*cells, *stages]
    needed = needed_stages(everything, storage)
    surely = needed
    if any(cell.perhaps for cell in cells):  # what only these start from is needed perhaps, too
        surely = needed_stages([replace(c, selected=c.selected and not c.perhaps) for c in everything], storage)

    def now(cell: PlannedCell) -> PlannedCell:
        alone = cell.arm is not None and cell.pending and not cell.perhaps
        return replace(_needed(cell), perhaps=cell.cell_id not in surely and not alone)

    return (
        [now(cell) if cell.cell_id in needed else cell for cell in cells],
        [now(stage) if stage.cell_id in needed else _unneeded(stage) for stage in stages],
    )


def _needed(stage: PlannedCell) -> PlannedCell:
    """A stage that something to be run starts from: it has to come to its end, asked for or not."""
    again: dict[Action, Action] = {"given_up": "failed", "spared": "new" if stage.facts.state == "new" else "resume"}
    return replace(stage, selected=True, action=again.get(stage.action, stage.action))


def _unneeded(stage: PlannedCell) -> PlannedCell:
    """A stage that nothing waits for: nothing is to be done, whatever it is."""
    rest: dict[Action, Action] = {"stale": "stale", "rerun": "stale", "failed": "given_up", "given_up": "given_up"}
    return replace(stage, action=rest.get(stage.action, "done"))


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
