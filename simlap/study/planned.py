"""A run that a study needs, what is known of it, and what is to be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from simlap.config import Experiment
from simlap.record.code import code_of
from simlap.record.journal import cell_storage, read_cell, read_track
from simlap.record.view import CellView, EpochRow
from simlap.storage import Storage
from simlap.study.arms import Arm
from simlap.study.checks import CheckedStage
from simlap.study.claims import CLAIM
from simlap.study.index import CellFacts, Index, Wanted, read_facts
from simlap.study.options import Options
from simlap.study.stages import Chain

Action = Literal["new", "done", "resume", "evaluate", "stopped", "failed", "given_up", "stale", "rerun", "spared"]
"""`failed` is run again, `given_up` (failed too) is left alone; `stale` is kept as it is, `rerun` (stale too) is run anew;
`spared` is not needed by the race, begun or not."""
Stale = Literal["own", "start"]
"""Why a run is stale: other code computed some of it (`own`), or what it started from is stale, or was discarded since."""


SYMBOLS: dict[Action, str] = {
    "new": "+", "done": "=", "resume": ">", "evaluate": ">", "stopped": "=", "failed": "!", "given_up": "!", "stale": "~",
    "rerun": "~", "spared": ".",
}  # fmt: skip
"""As `simlap plan` shows them; a stopped cell is done for this study."""


_AT_REST = ("done", "stopped", "given_up", "stale", "spared")


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
    stale: bool = False
    """Whether other code computed some of what is there of it: it is not to go on from there."""
    is_stopped: bool = False
    """Whether this study's own scheduler, as the file has it now, has stopped it."""
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


def protocols(experiment: Experiment) -> list[dict[str, Any]]:
    """What an experiment is evaluated with, as plain values."""
    return [evaluation.model_dump(mode="json") for evaluation in experiment.evaluate]


def facts_of(index: Index, chains: Sequence[Chain], undecided: AbstractSet[str]) -> dict[str, CellFacts]:
    """What is known of every stage of these cells, by id.

    A failure counts once a launch has decided that it is not to be tried again. One that was killed before has not (`undecided`),
    nor has one that still has its claim on the cell: another study's launch too may be about to try it again.
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

    def is_open(cell_id: str) -> bool:
        return cell_id in undecided or cell_storage(index.storage, cell_id).exists(CLAIM)

    return {
        cell_id: replace(known, state="interrupted") if known.state == "failed" and is_open(cell_id) else known
        for cell_id, known in index.facts(wanted).items()
    }


def stale_cells(chains: Sequence[Chain], facts: dict[str, CellFacts]) -> dict[str, Stale]:
    """Runs that other code computed some of, or that started from one of them, or from what a stage was before it was run anew;
    however they ended."""
    codes: dict[int, str] = {}  # one for all seeds
    stale: dict[str, Stale] = {}
    for chain in chains:
        for stage in chain.stages:
            known = facts[stage.cell_id]
            if known.state == "new":
                continue
            if id(stage.checked) not in codes:
                codes[id(stage.checked)] = code_of(stage.checked.experiment)
            if any(code != codes[id(stage.checked)] for code in known.codes):
                stale[stage.cell_id] = "own"
            elif stage.start in stale or _is_outrun(known, facts.get(stage.start or "")):
                stale[stage.cell_id] = "start"
    return stale


def _is_outrun(known: CellFacts, stage: CellFacts | None) -> bool:
    """Whether the stage that a run started from has been run anew since."""
    return stage is not None and known.start_rerun is not None and known.start_rerun < stage.reruns


def action_of(facts: CellFacts, stopped: bool, stale: Stale | None, options: Options) -> Action:
    """What is to be done with a cell. Nothing goes on under other code than it began with.

    Args:
        facts: what is known of it.
        stopped: by the study's scheduler, which may stop it.
        stale: whether it is, and why.
        options: what the launch is asked for.
    """
    match facts.state:
        case "new":
            return "new"
        case "failed":
            # to be tried again, where its own code has changed since: from the start
            if stale and (options.rerun_stale or (stale == "own" and options.retry_failed)):
                return "rerun"
            return "failed" if options.retry_failed else "given_up"
        case _ if stale and options.rerun_stale:
            return "rerun"
        case "done" if stale:
            return "stale"
        case "done":
            return "done" if facts.evaluated is not None else "evaluate"
        case _ if stale == "own" or (stale and stopped):
            return "stale"
        case _:
            return "stopped" if stopped else "resume"
