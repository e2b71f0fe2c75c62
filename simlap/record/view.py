"""A study as plain data: what the report and the MLflow projection read. Filled from the plan and the journals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from simlap.record.replay import ReplayView

CellState = Literal["new", "running", "interrupted", "stopped", "failed", "done"]
PAUSED = "paused until it is known whether it is needed further"
"""Why a run is interrupted that stands at an epoch where the others are waited for."""
PREEMPTED = "preempted: its machine was about to be taken away"
"""Why a run is interrupted whose process, or the command's, was told to end: it is shown as `preempted`."""


class Unread(Mapping[str, Any]):
    """What is read when it is first looked into, and parsed when its values are asked for: of a thousand cells' configurations
    a summary needs none, and parsing them takes seconds."""

    def __init__(self, read: Callable[[], bytes], parse: Callable[[bytes], dict[str, Any]]) -> None:
        self._read, self._parse = read, parse

    @cached_property
    def content(self) -> bytes:
        """As it was written."""
        return self._read()

    @cached_property
    def _found(self) -> dict[str, Any]:
        return self._parse(self.content)

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True)
class EpochRow:
    """Metrics of one finished epoch. `epoch` counts from 1; `time_ms` is when the row was first written."""

    epoch: int
    time_ms: int
    metrics: dict[str, float]
    system: dict[str, float] = field(default_factory=dict)
    """How busy the machine was (`system/*`): no part of the result. Nothing but MLflow reads it."""


@dataclass(frozen=True)
class CellView:
    """One run: an arm with a seed."""

    cell_id: str
    seed: int
    state: CellState
    rows: list[EpochRow] = field(default_factory=list)
    """One row per finished epoch, in order, none twice."""
    durable_epoch: int = 0
    """Rows up to this epoch are covered by a checkpoint or an end; later ones may be replayed."""
    result: dict[str, float] = field(default_factory=dict)
    """Metrics of the finished run (`test/*`, ...); empty unless done."""
    error: str | None = None
    reason: str | None = None
    """Why it was stopped."""
    started_ms: int | None = None
    ended_ms: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved experiment."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Of the newest attempt."""
    codes: list[str] = field(default_factory=list)
    """Hashes of the code that its numbers are of, in order, as far as attempts noted it (`simlap.record.attempts`)."""
    warnings: list[str] = field(default_factory=list)
    """What its attempts want to be seen: checkpoints that were passed over, images that cannot be decoded."""

    @property
    def start(self) -> str | None:
        """What its backbone started from: the cell id of a stage, or `weights:` and their fingerprint."""
        start: str | None = self.provenance.get("start")
        return start

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self.rows[-1].epoch if self.rows else 0

    @property
    def seconds(self) -> float:
        """Device time of the epochs that count."""
        return sum(row.metrics.get("time/epoch_s", 0.0) for row in self.rows)

    def metric_at(self, name: str, epoch: int) -> float | None:
        """Value of a metric at an epoch, None where it was not measured."""
        return next((row.metrics[name] for row in self.rows if row.epoch == epoch and name in row.metrics), None)


@dataclass(frozen=True)
class ArmView:
    """One combination of levels, with a cell per seed."""

    name: str
    levels: dict[str, str]
    protected: bool
    is_baseline: bool
    cells: list[CellView]
    code: str | None = None
    """Hash of the code that its cells depend on, when the study was last applied."""


DECISIONS_SCHEMA_VERSION = 1
"""Of `race.json`."""


@dataclass(frozen=True)
class DecisionView:
    """What a race decided about an arm at its last look."""

    verdict: Literal["better", "worse", "equivalent", "futile", "undecided"]
    reason: str
    leaves: bool
    """Whether the arm has left the race with it; else more seeds are to come."""
    seeds: int
    """How many planned seeds the look takes, for this arm and the other."""
    epochs: int | None
    """The rung it was made at; None: at the last epoch."""
    against: str | None = None
    difference: float | None = None
    """Mean of the arm minus `against`, on the metric of decisions."""
    low: float | None = None
    high: float | None = None
    """Repeated confidence interval; None where it is not bounded yet, and at rungs."""
    p_value: float | None = None
    """Of this look's test alone."""
    level: float | None = None
    """That it was held against."""
    p_adjusted: float | None = None
    """Over looks and comparisons, once the arm leaves."""
    why: str = ""
    """What of the reason is not in the fields above: why it is given up, or goes on."""
    spent: float = 0.0
    comparisons: int = 0


@dataclass(frozen=True)
class RaceView:
    """Where a race stands."""

    against: Literal["baseline", "best"]
    alpha: float
    margin: float | None
    looks: list[int]
    """Seeds at each look there may be."""
    over: bool
    seeds: dict[str, int]
    """By arm, how many of the planned seeds count: those of the look that decided it, or that it has been asked for."""
    decisions: dict[str, DecisionView]
    """By arm, of its last look; none for the arm that others are compared with."""


@dataclass(frozen=True)
class StageView:
    """A run that cells start from and that is no arm's own cell."""

    name: str
    """`pretrain`, followed by the levels that only its users have."""
    cell: CellView
    used_by: list[str]
    """Ids of the arms' cells that start from it, directly or through other stages."""
    code: str | None = None
    """As of an arm."""


@dataclass(frozen=True)
class TrialView:
    """A choice of values that a search tried."""

    number: int
    values: dict[str, Any]
    """By the name of what is searched for."""
    cells: list[CellView]
    """One for each seed of the search; none where the values made no experiment."""
    reason: str | None = None
    """Why it failed before it could begin."""

    def value(self, metric: str) -> float | None:
        """Mean of the metric's last value over the seeds; None unless all are done and have one."""
        found = [cell.metric_at(metric, cell.epoch) if cell.state == "done" else None for cell in self.cells]
        values = [value for value in found if value is not None and math.isfinite(value)]
        return fmean(values) if values and len(values) == len(found) else None


@dataclass(frozen=True)
class SearchView:
    """A search for values that arms are compared at."""

    name: str
    trials: list[TrialView]
    """Those that were chosen so far."""
    of: int
    """How many there are to be."""
    arms: dict[str, dict[str, Any] | None]
    """The arms that have their values from it, by name: what these are, or None while they are not known."""
    best: int | None = None
    """Number of the best trial."""
    value: float | None = None
    """Of the best trial."""
    failed: str | None = None
    """Why there is no best."""


@dataclass(frozen=True)
class StudyView:
    """A study: its question and what is known so far."""

    name: str
    metric: str
    """Decisions are made on it (`val/...`)."""
    mode: Literal["max", "min"]
    report_metric: str
    """The final table shows it (`test/...`)."""
    epochs: int
    """Epochs of a full run."""
    seeds: list[int]
    factors: dict[str, list[str]]
    arms: list[ArmView]
    stages: list[StageView] = field(default_factory=list)
    """What the arms' cells start from, earlier ones first."""
    searches: list[SearchView] = field(default_factory=list)
    """What tunes the arms before they are compared."""
    scheduler: str = "none"
    race: RaceView | None = None
    """Where the scheduler is one, and has begun."""
    claims: list[str] = field(default_factory=list)
    """What its file says that it is to show (`simlap.config.claims`)."""
    compare: str | int = "common"
    """Where arms are compared: at the highest `common` epoch, at the `last` one, by the value that is `best_so_far`, or at an
    epoch."""
    margin: float | None = None
    """Differences below it do not matter."""
    sampled: dict[str, Literal["linear", "log"]] = field(default_factory=dict)
    """Factors whose levels are taken from a range, and on which scale."""
    declared_late: list[str] = field(default_factory=list)
    """Keys of its file, and claims, that were first applied when there were results already."""
    validation: bool = True
    """False: there is no validation split, decisions were made on the test set, and tables say so."""
    command: str = ""
    """The command that reproduces it."""
    provenance: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """The study file as it was applied."""
    superseded: dict[str, int] = field(default_factory=dict)
    """By arm, how many runs it has from before its data changed; none where there are none."""
    replay: ReplayView | None = None
    """What came of the newest `simlap verify`."""
    gates: dict[str, Any] = field(default_factory=dict)
    """What `simlap gates` found (`gates/summary.json`); empty where it was not asked."""

    def more_is_better(self, metric: str) -> bool:
        """Of `metric.name` and what measures the same elsewhere, the file says it; of other accuracies and losses, their name."""
        name = metric.rpartition("/")[2]
        if name != self.metric.rpartition("/")[2]:
            for part, more in (("_top1", True), ("loss", False)):  # `knn_top1_k5` is one, too
                if part in name:
                    return more
        return self.mode == "max"

    def seeds_of(self, arm: ArmView) -> list[int]:
        """The planned seeds that count for an arm: all, but in a race those that decided about it."""
        used = self.race.seeds.get(arm.name) if self.race is not None else None
        return self.seeds if used is None else self.seeds[:used]
