"""How far the searches of a study are, and what they found: worked out anew from the trials' cells, whenever it is asked.

Nothing else is remembered of a search. A trial is a cell like any other, named by what it computes; batch after batch is
suggested from the results before it (`suggest`), up to the first that has a result missing. So a study that was killed asks
the same trials again and finds them done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from simlap.config.schema import Experiment
from simlap.errors import ConfigError, UserError
from simlap.evaluate.names import metric_names
from simlap.record import cache
from simlap.study.arms import Arm
from simlap.study.checks import CheckedStage, check_arms, name_stages
from simlap.study.search import Space, Tuner, Values, values_text
from simlap.study.stages import Chain
from simlap.study.suggest import Told, suggest

if TYPE_CHECKING:
    from simlap.study.spec import Study


@dataclass(frozen=True)
class Known:
    """What is known of a trial's cell."""

    over: bool = False
    value: float | None = None
    """Of the metric, where it is done and measured it."""
    reason: str | None = None
    """Why it has none."""


Look = Callable[[Sequence[Chain]], Mapping[str, Known]]
"""What is known of these cells now, by cell id."""


@dataclass(frozen=True)
class Trial:
    """A choice of values for an arm."""

    number: int
    """From 1."""
    values: Values
    chains: tuple[Chain, ...] = ()
    """A cell for each seed of the search; none where the values make no experiment."""
    over: bool = False
    value: float | None = None
    """The metric's mean over the seeds; None while it is not over, and where it failed."""
    reason: str | None = None
    """Why it failed."""


@dataclass
class ArmSearch:
    """One search: of an arm, or of the baseline for all arms."""

    arm: Arm
    """That is tuned."""
    line: str
    """What its trials are shown as."""
    space: Space
    of: int
    """How many trials there are to be."""
    seeds: list[int]
    """Of every trial."""
    stages: tuple[CheckedStage, ...]
    """Of some trial: stands for those that are not known yet."""
    sign: float
    """1 where more of the metric is better, else -1."""
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    """Once all trials are over."""

    @property
    def over(self) -> bool:
        return len(self.trials) == self.of and all(trial.over for trial in self.trials)

    @property
    def reason(self) -> str | None:
        """Why there is no best: all trials failed."""
        if not self.over or self.best is not None:
            return None
        return f"all {self.of} trials of its search failed; the first: {self.trials[0].reason}"

    def find_best(self) -> None:
        """Ties go to the lower number."""
        valued = [(self.sign * trial.value, -trial.number) for trial in self.trials if trial.value is not None]
        if self.over and valued:
            self.best = self.trials[-max(valued)[1] - 1]


@dataclass(frozen=True)
class Tuning:
    """What all searches of a study have come to."""

    study: Study
    """With the best values in the experiments of its arms, where they are known."""
    searches: list[ArmSearch] = field(default_factory=list)
    waiting: dict[str, tuple[CheckedStage, ...]] = field(default_factory=dict)
    """By the name of an arm whose values are not known yet: stages that stand for its own."""
    hopeless: dict[str, str] = field(default_factory=dict)
    """By the name of an arm: why there are no values for it."""
    of_arm: dict[str, ArmSearch] = field(default_factory=dict)
    """By the name of an arm: the search that it has its values from."""

    @property
    def ready(self) -> list[Arm]:
        """Arms that can be run."""
        return [arm for arm in self.study.arms if arm.name not in self.waiting and arm.name not in self.hopeless]

    def asks(self, search: ArmSearch, names: set[str]) -> bool:
        """Whether one of these arms has its values from the search."""
        return any(name in names for name, its_search in self.of_arm.items() if its_search is search)

    def values(self, arm: Arm) -> Values | None:
        """The arm's tuned values; None where there are none, or not yet."""
        search = self.of_arm.get(arm.name)
        tuner = self.study.tuner
        if search is None or search.best is None or tuner is None:
            return None
        return {name: value for name, value in search.best.values.items() if name in tuner.space(arm)}


def tune(study: Study, look: Look) -> Tuning:
    """Follow the searches of a study as far as results go. Raises UserError for ranges that no arm can take.

    Args:
        study: as its file has it.
        look: what is known of cells now.
    """
    tuner = study.tuner
    if tuner is None:
        return Tuning(study)
    file = str(study.path)
    searches = _searches(study, tuner)
    going = [search for search in searches if not search.over]
    while going:
        asked = [(search, trial) for search in going for trial in _next(study, tuner, search)]
        made = _made(study, tuner, asked)
        stages = _checked([arm for arm in made if isinstance(arm, Arm)], file)
        batch: list[tuple[ArmSearch, Trial]] = []
        for (search, trial), arm in zip(asked, made, strict=True):
            found = stages[id(arm)] if isinstance(arm, Arm) else arm
            if isinstance(found, UserError) or not isinstance(arm, Arm):
                batch.append((search, replace(trial, over=True, reason=str(found))))
            else:
                chains = tuple(Chain(seed, arm, name_stages(found, seed)) for seed in search.seeds)
                batch.append((search, replace(trial, chains=chains)))
        known = look([chain for _, trial in batch for chain in trial.chains])
        for search, trial in batch:
            search.trials.append(_told(trial, known))
        going = [s for s in going if all(trial.over for trial in s.trials) and not s.over]
    for search in searches:
        search.find_best()
    cache.save()
    return _result(study, tuner, searches)


def trial_name(arm: Arm, number: int, values: Values) -> str:
    """What errors call a trial."""
    return f"{arm.name}, trial {number} ({values_text(values)})"


def _searches(study: Study, tuner: Tuner) -> list[ArmSearch]:
    """Those of the study, without trials. All checks that a study's arms go through are made at the ends of the ranges."""
    per_arm = tuner.search.per == "arm"
    arms = [arm for arm in study.arms if tuner.space(arm) and (per_arm or arm.baseline)]
    corners = [(arm, values) for arm in arms for values in tuner.corners(arm)]
    trials = [
        _trial_arm(study, tuner, arm, values, f"{arm.name}, search ({values_text(values)})") for arm, values in corners
    ]
    checked = check_arms(trials, str(study.path))
    first: dict[str, tuple[CheckedStage, ...]] = {}
    for (arm, _), stages in zip(corners, checked, strict=True):
        first.setdefault(arm.name, stages)
    seen: dict[str, str] = {}
    for name, stages in first.items():
        identity = name_stages(stages, 0)[-1].cell_id
        if identity in seen:
            raise ConfigError(
                f"is the same experiment as arm {seen[identity]!r} wherever both are given the same searched values",
                file=str(study.path), key=f"arm {name}",
            )  # fmt: skip
        seen[identity] = name
    seeds = tuner.search.seed_list(study.spec.seed_list())
    sign = 1.0 if study.spec.metric.mode == "max" else -1.0
    return [
        ArmSearch(
            arm, f"search: {arm.name}" if per_arm else "search", tuner.space(arm), tuner.search.trials, seeds,
            first[arm.name], sign,
        )
        for arm in arms
    ]  # fmt: skip


def _next(study: Study, tuner: Tuner, search: ArmSearch) -> list[Trial]:
    """The next batch of a search all of whose trials so far are over."""
    first = len(search.trials)
    n = min(tuner.search.batch, search.of - first)
    told = [Told(trial.values, trial.value) for trial in search.trials]
    values = suggest(tuner.search, search.space, told, n, mode=study.spec.metric.mode)
    return [Trial(first + i, one) for i, one in enumerate(values, 1)]


def _made(study: Study, tuner: Tuner, asked: Sequence[tuple[ArmSearch, Trial]]) -> list[Arm | UserError]:
    made: list[Arm | UserError] = []
    for search, trial in asked:
        try:
            name = trial_name(search.arm, trial.number, trial.values)
            made.append(_trial_arm(study, tuner, search.arm, trial.values, name))
        except ConfigError as error:  # values that are right by themselves need not be right together
            made.append(error)
    return made


def _trial_arm(study: Study, tuner: Tuner, arm: Arm, values: Values, name: str) -> Arm:
    """A trial as an arm that no scheduler stops, evaluated with what its value needs and not on more."""
    experiment = tuner.experiment(arm, values, epochs=tuner.search.epochs)
    return Arm(name, arm.levels, _measuring(experiment, study.spec.metric.name), protected=True, baseline=False)


def _measuring(experiment: Experiment, metric: str) -> Experiment:
    split = "test" if experiment.data.validation == "none" else "val"
    needed = tuple(protocol for protocol in experiment.evaluate if metric in metric_names(protocol, split))
    return experiment.model_copy(update={"evaluate": needed})


def _checked(arms: Sequence[Arm], file: str) -> dict[int, tuple[CheckedStage, ...] | UserError]:
    """The stages of each, or what is wrong with it, by the id of the arm."""
    try:
        return dict(zip(map(id, arms), check_arms(arms, file), strict=True))
    except UserError:
        found: dict[int, tuple[CheckedStage, ...] | UserError] = {}
        for arm in arms:
            try:
                found[id(arm)] = check_arms([arm], file)[0]
            except UserError as error:
                found[id(arm)] = error
        return found


def _told(trial: Trial, known: Mapping[str, Known]) -> Trial:
    """The trial with what its cells have come to."""
    if not trial.chains:
        return trial
    cells = [known[chain.stages[-1].cell_id] for chain in trial.chains]
    failed = next((cell.reason or "it has no value" for cell in cells if cell.over and not _valued(cell)), None)
    if not all(cell.over for cell in cells):
        return trial
    if failed is not None:
        return replace(trial, over=True, reason=failed)
    return replace(trial, over=True, value=fmean(cell.value for cell in cells if cell.value is not None))


def _valued(cell: Known) -> bool:
    return cell.value is not None and math.isfinite(cell.value)


def _result(study: Study, tuner: Tuner, searches: list[ArmSearch]) -> Tuning:
    of_arm = {search.arm.name: search for search in searches}
    if tuner.search.per == "study":
        of_arm = {arm.name: searches[0] for arm in study.arms if tuner.space(arm)}
    arms: list[Arm] = []
    waiting: dict[str, tuple[CheckedStage, ...]] = {}
    hopeless: dict[str, str] = {}
    unknown = [arm for arm in study.arms if arm.name in of_arm and not of_arm[arm.name].over]
    standing = [replace(arm, experiment=tuner.experiment(arm, tuner.corners(arm)[0])) for arm in unknown]
    checked = dict(zip((arm.name for arm in unknown), check_arms(standing, str(study.path)), strict=True))
    for arm in study.arms:
        search = of_arm.get(arm.name)
        if search is None:
            arms.append(arm)
        elif search.best is not None:
            values = {name: value for name, value in search.best.values.items() if name in tuner.space(arm)}
            arms.append(replace(arm, experiment=tuner.experiment(arm, values)))
        else:
            arms.append(arm)
            if search.reason is not None:
                hopeless[arm.name] = search.reason
            else:
                waiting[arm.name] = checked[arm.name]
    return Tuning(replace(study, arms=arms), searches, waiting, hopeless, of_arm)
