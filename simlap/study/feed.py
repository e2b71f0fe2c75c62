"""Hands cells to Ray Tune one by one, when there is room for them, in the plan's order; again where an attempt is to be repeated.

A grid of all cells would be copied, queued and looked through by Tune as a whole, on every event; and it knows one size only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm

from simlap.config.schema import Resources
from simlap.record.journal import cell_storage
from simlap.record.view import PREEMPTED
from simlap.run import preempt
from simlap.run.cluster import Node
from simlap.run.task import GROWS, STOP_REQUEST
from simlap.storage import StorageFullError
from simlap.study.budget import BudgetGuard
from simlap.study.capacity import Share
from simlap.study.claims import Claims, Holder
from simlap.study.index import CellFacts
from simlap.study.lease import BEAT_S
from simlap.study.packing import Packing, is_auto
from simlap.study.planned import PlannedCell
from simlap.study.waiting import Attempt, Waiting

_log = logging.getLogger("simlap.study")
_NO_CHECKPOINTS = tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)


class CellFeed(SearchAlgorithm):
    """Which cell is next.

    Args:
        cells: in the order in which they are to run.
        nodes: the alive nodes by id; asked now and then, for nodes come and go.
        make_config: what a trial of an attempt is told.
        trainables: names that Tune knows: of the actor for one worker, and of the driver of a worker group.
        head: a resource of the head node that costs nothing, for drivers.
        limit: at most so many cells of such resources at a time (None: as many as fit).
        guard: of the study's budget.
        claims: against other launches that have the same cells.
        packing: what is known of the memory that cells take.
        demand: see `Waiting`.
        more: asked for further cells when all before have ended; none: that was all.
    """

    def __init__(
        self,
        cells: Sequence[PlannedCell],
        *,
        nodes: Callable[[], Mapping[str, Node]],
        make_config: Callable[[Attempt], dict[str, Any]],
        trainables: tuple[str, str],
        head: str,
        limit: Callable[[Resources], int] | None = None,
        guard: BudgetGuard | None = None,
        claims: Claims | None = None,
        packing: Packing | None = None,
        demand: Callable[[Sequence[Share], Sequence[Share]], None] | None = None,
        more: Callable[[], Sequence[PlannedCell]] | None = None,
    ) -> None:
        self._make_config, self._guard, self._more = make_config, guard, more
        self._given = 0
        self._trainables, self._head = trainables, head
        self._claims, self._packing = claims, packing or Packing()
        self.held: list[Attempt] = []
        """What another launch is at work on."""
        self.on_held: Callable[[Attempt, Holder], None] = lambda attempt, holder: None
        self.on_elsewhere: Callable[[Attempt, CellFacts], None] = lambda attempt, facts: None
        """Told of a cell that another launch has brought to its end."""
        self._waiting = Waiting(nodes, limit=limit, guard=guard, grow=self._stop_to_grow, demand=demand)
        self.attempts: dict[str, Attempt] = {}
        """By trial id; whoever watches the trials removes what is over."""
        self._looked_at_held = time.monotonic()
        self._storage: Any = None
        self._told: set[str] = set()
        """Trials that were asked to stop."""
        self.full: StorageFullError | None = None
        """Why nothing more is begun, where the storage is full: it is so for every cell."""
        self._add(cells)

    def _add(self, cells: Sequence[PlannedCell]) -> None:
        for order, cell in enumerate(cells, start=self._given):
            self._waiting.add(Attempt(order, cell, self._packing.share(cell)))
        self._given += len(cells)

    def add_configurations(self, experiments: Any) -> None:
        """Tune's description of the run: where trials keep their files."""
        (experiment,) = experiments
        assert isinstance(experiment, Experiment)
        self._storage = experiment.storage

    def next_trial(self) -> Trial | None:
        """The next cell that there is room for. None any more where another launch has taken the study over."""
        if self.is_void or self.full or preempt.asked():
            self.set_finished()  # type: ignore[no-untyped-call]  # Ray's
        if self._more is not None and not (self._finished or self._waiting.busy or self.attempts or self.held):
            self._add(found := self._more())
            self._more = self._more if found else None
        trial_id = str(Trial.generate_id())
        attempt = None if self._finished else self._claim(trial_id)
        if attempt is None:
            return None
        if self._guard is not None:
            # what waits for a node takes nothing yet
            self._guard.started(attempt.cell, attempt.holds.devices if self._waiting.has_room(trial_id) else 0.0)
        self.attempts[trial_id] = attempt
        return self._trial(trial_id, attempt)

    def heed_notice(self) -> None:
        """Where this process was told to end: nothing more is begun, and what runs is asked to save and stop."""
        if not preempt.asked():
            return
        self.set_finished()  # type: ignore[no-untyped-call]  # Ray's
        for trial_id, attempt in self.attempts.items():
            if trial_id not in self._told:
                self._told.add(trial_id)
                try:
                    cell_storage(attempt.cell.storage, attempt.cell.cell_id).write(STOP_REQUEST, PREEMPTED.encode())
                except OSError as error:  # its newest checkpoint holds
                    _log.warning("%s could not be asked to stop: %s", attempt.cell.cell_id, error)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Its room is free."""
        attempt = self._waiting.release(trial_id)
        if attempt is not None and self._guard is not None:
            self._guard.ended(attempt.cell.cell_id)

    def is_finished(self) -> bool:
        """Also False while something runs: it may have to run again. What is held is not waited for here (`reclaim`)."""
        return bool(self._finished or not (self._waiting.busy or (self._more is not None and not self.held)))

    @property
    def is_ended(self) -> bool:
        """Whether Tune was told to end: nothing more is handed out."""
        return bool(self._finished)

    @property
    def is_void(self) -> bool:
        """Whether another launch has taken the study over: this one decides and records nothing more."""
        return self._claims is not None and self._claims.is_void

    @property
    def may_grow(self) -> bool:
        """Whether there may be more cells than were given so far."""
        return self._more is not None

    def again(self, attempt: Attempt, *, larger: bool, lost: bool = False) -> None:
        """Run a cell once more, from where it stands now; before all that come after it in the plan.

        Args:
            attempt: that has ended.
            larger: with a larger share of its device.
            lost: its process or node was.
        """
        share = attempt.share.larger(self._waiting.capacity.largest()) if larger else attempt.share
        assert share is not None, "`can_grow` was asked"
        if larger and self._packing.outgrew(attempt.cell, share):
            self._share_anew()
        cell = replace(attempt.cell, facts=replace(attempt.cell.facts, state="failed"))  # its journal is read anew
        fresh = Attempt(attempt.order, cell, share, attempt.history)
        if lost and share.fewest is not None:
            self._waiting.settle(fresh)
        self._waiting.add(fresh)

    def learn(self, attempt: Attempt) -> None:
        """A cell is done: what it took of a GPU's memory tells how many others like it fit on one."""
        if is_auto(attempt.cell) and self._packing.learn(attempt.cell, attempt.cell.reread().facts):
            self._share_anew()

    def _stop_to_grow(self, attempt: Attempt) -> bool:
        if preempt.asked():
            return False
        try:
            cell_storage(attempt.cell.storage, attempt.cell.cell_id).write(STOP_REQUEST, GROWS.encode())
        except OSError as error:
            _log.warning("%s could not be asked to stop, to go on with more workers: %s", attempt.cell.cell_id, error)
            return False
        return True

    def _share_anew(self) -> None:
        for attempt in self._waiting.clear():
            # who has run out of memory before keeps what it was given
            if is_auto(attempt.cell) and not attempt.history.out_of_memory:
                attempt.share = self._packing.share(attempt.cell)
            self._waiting.add(attempt)

    def can_grow(self, attempt: Attempt) -> bool:
        """Whether it can have a larger share of its device."""
        return attempt.share.larger(self._waiting.capacity.largest()) is not None

    def release(self, attempt: Attempt) -> None:
        """Nothing more is done with the cell: other launches may have it."""
        if self._claims is not None:
            self._claims.release(attempt.cell.cell_id)

    def lost(self, attempt: Attempt) -> bool:
        """Whether another launch has taken the cell over, which is then waited for."""
        holder = self._claims.holder(attempt.cell.cell_id) if self._claims is not None else None
        if holder is None:
            return False
        self._hold(attempt, holder)
        return True

    def reclaim(self) -> bool:
        """Look again at what is held: what another launch has done is done; what none has any more waits for its turn.
        Whether anything waits now."""
        assert self._claims is not None
        held, self.held = self.held, []
        for attempt in held:
            try:
                abandoned = self._claims.is_abandoned(attempt.cell.cell_id)
                going_on = not abandoned and self._claims.holder(attempt.cell.cell_id) is not None
                fresh = None if going_on else self._after_others(attempt, given_back=not abandoned)
            except OSError as error:  # of the storage: Tune would kill all that runs
                _log.warning("%s: whether another launch has it could not be read: %s", attempt.cell.cell_id, error)
                going_on, fresh = True, None
            if going_on:
                self.held.append(attempt)
            elif fresh is not None:
                self._waiting.add(fresh)
        return bool(self._waiting)

    def _claim(self, trial_id: str) -> Attempt | None:
        """The first that fits and that no other launch is at work on or has done, with its room reserved."""
        if self._claims is None:
            return self._waiting.take(trial_id)
        if self.held and time.monotonic() - self._looked_at_held > BEAT_S:
            self._looked_at_held = time.monotonic()
            self.reclaim()
        while (attempt := self._waiting.take(trial_id)) is not None:
            try:
                holder = self._claims.take(attempt.cell.cell_id)
                fresh = self._after_others(attempt) if holder is None else None
            except StorageFullError as error:
                self.full = error
                self._waiting.release(trial_id)
                return None
            except OSError as error:
                _log.warning("%s could not be claimed, and is tried again: %s", attempt.cell.cell_id, error)
                self._waiting.release(trial_id)
                self._waiting.add(attempt)
                return None
            if fresh is not None:
                return fresh
            self._waiting.release(trial_id)
            if holder is not None:
                self._hold(attempt, holder)
            else:
                self._claims.release(attempt.cell.cell_id)
        return None

    def _hold(self, attempt: Attempt, holder: Holder) -> None:
        self.held.append(attempt)
        self._looked_at_held = time.monotonic()
        self.on_held(attempt, holder)

    def _after_others(self, attempt: Attempt, *, given_back: bool | None = None) -> Attempt | None:
        """An attempt at a cell as it is now, after what other launches have done; None where these have brought it to its end.

        Args:
            attempt: that was to be made.
            given_back: whether another launch had the cell and let it go, or (False) died with it; None: none is known to have.
        """
        cell = attempt.cell
        untouched = cell.action in ("new", "resume") and not cell_storage(cell.storage, cell.cell_id).exists(
            "result.json"
        )
        if untouched and given_back is None:
            return attempt
        now = cell.reread()
        failed = (
            given_back and now.facts.state == "failed" and cell.action != "failed"
        )  # there, it was tried again in vain
        if failed or (now.facts.state == "done" and now.facts.evaluated is not None):
            self.on_elsewhere(attempt, now.facts)
            return None
        return Attempt(attempt.order, now, attempt.share, attempt.history, attempt.passed)

    def _trial(self, trial_id: str, attempt: Attempt) -> Trial:
        share = attempt.holds
        alone = share.workers == 1
        if alone:
            bundle = tune.PlacementGroupFactory([{"CPU": share.cpus, "GPU": share.gpus}])
        else:
            # it holds no CPU, or workers would wait for what their own drivers hold. The name keeps drivers apart: Tune gives a
            # warm actor to whoever asks for the same, and a driver that was stopped in the middle is no use to anybody
            bundle = tune.PlacementGroupFactory([{self._head: 0.001}], name=f"simlap-{trial_id}")
        return Trial(
            self._trainables[0 if alone else 1],
            config={"cell": self._make_config(attempt)},
            trial_id=trial_id,
            storage=self._storage,
            placement_group_factory=bundle,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            checkpoint_config=_NO_CHECKPOINTS if alone else None,
        )
