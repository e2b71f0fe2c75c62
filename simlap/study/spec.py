"""The study file: factors x seeds over a base experiment."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from simlap.config import Experiment, load_experiment, override, parse_override, validate, yaml
from simlap.config.identity import UNCOUNTED
from simlap.config.load import overlap
from simlap.config.schema import Count, Resources, Strict
from simlap.errors import ConfigError

Levels = list[JsonValue] | dict[str, JsonValue]


def level_name(value: JsonValue) -> str:
    """What a level without a name is called: a word as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


class Factor(Strict):
    """A place in the config and the values it takes."""

    path: str
    """Dotted path into the experiment; the value there is replaced."""
    levels: Annotated[Levels, Field(min_length=1)]
    """Values by name, or a list of values that are their own names."""

    def named(self) -> dict[str, JsonValue]:
        """Level name -> value."""
        if isinstance(self.levels, dict):
            return self.levels
        return {level_name(value): value for value in self.levels}


class Metric(Strict):
    """What decides, and what the final table shows."""

    name: str = "val/probe_top1"
    """Decisions (stopping, comparison of unfinished arms) are made on it."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less is better."""
    report: str = "test/probe_top1"
    """The final table shows it, for arms that ran to the end."""
    epoch: Literal["last"] = "last"
    """The declared epoch at which the test set is looked at."""


class NoScheduler(Strict):
    """Every cell runs to the end."""

    kind: Literal["none"]


class Asha(Strict):
    """Asynchronous successive halving (Li et al. 2020), Ray Tune's."""

    kind: Literal["asha"]
    grace_epochs: Count = 5
    """No cell is stopped before it; the first rung."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Rungs are grace_epochs x reduction_factor^k; at each, the best 1/reduction_factor goes on."""


Scheduler = Annotated[NoScheduler | Asha, Field(discriminator="kind")]
Combination = dict[str, str | bool | int | float | None]


class StudySpec(Strict):
    """A study as the file has it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the study, of its folder and of its MLflow experiment."""
    schema_version: Literal[1] = 1
    """Version of this format."""
    base: str
    """Experiment file, relative to the study file."""
    set: dict[str, JsonValue] = {}
    """Values at dotted paths, for all arms."""
    factors: Annotated[dict[str, Factor], Field(min_length=1)]
    """What is varied."""
    design: Literal["factorial"] = "factorial"
    """All combinations of levels."""
    exclude: list[Combination] = []
    """Combinations that are left out; a factor that is not named matches any level."""
    baseline: Combination
    """The arm that all others are compared with: one level of every factor."""
    protect: list[Combination] = []
    """Arms that always run to the end; the baseline always does."""
    seeds: Count | list[int] = 5
    """How many seeds (0, 1, ...), or which. Every arm gets the same ones."""
    metric: Metric = Metric()
    scheduler: Scheduler = NoScheduler(kind="none")
    resources: Resources | None = None
    """Resources of every cell (default: the base experiment's)."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) != len(seeds)):
            raise ValueError("seeds must be distinct, and at least one")
        return seeds

    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


@dataclass(frozen=True)
class Arm:
    """One combination of levels, resolved to an experiment (with the base's seed)."""

    name: str
    levels: dict[str, str]
    experiment: Experiment
    protected: bool
    baseline: bool


@dataclass(frozen=True)
class Study:
    """A study file, resolved and checked."""

    spec: StudySpec
    path: Path
    text: str
    arms: list[Arm]
    base: Experiment

    @property
    def name(self) -> str:
        return self.spec.name


def load_study(path: str | Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file and resolve its arms. `overrides` (`a.b=v`) change the base experiment. Raises ConfigError."""
    tree, text = yaml.read_mapping(path)
    file = str(path)
    spec = validate(StudySpec, tree, file=file)
    base = load_experiment(Path(path).parent / spec.base)
    base = override(base, list(spec.set.items()), file=file, where="set")
    base = override(base, [parse_override(change) for change in overrides], file="command line", where="--set")
    if spec.resources is not None:
        base = base.model_copy(update={"resources": spec.resources})
    _check_factors(spec, file)
    arms = _arms(spec, base, file)
    epochs = max(arm.experiment.train.epochs for arm in arms)
    for arm in arms:
        _check_metric(spec, arm.experiment, epochs, file)
    return Study(spec, Path(path), text, arms, base)


def arm_name(levels: dict[str, str]) -> str:
    return " ".join(f"{factor}={level}" for factor, level in levels.items())


def _arms(spec: StudySpec, base: Experiment, file: str) -> list[Arm]:
    names = {factor: list(definition.named()) for factor, definition in spec.factors.items()}
    for factor, definition in spec.factors.items():
        if isinstance(definition.levels, list) and len(names[factor]) != len(definition.levels):
            raise ConfigError("a level is given twice", file=file, key=f"factors.{factor}.levels")
    baseline = _combination(spec.baseline, names, file, "baseline")
    if missing := [factor for factor in names if factor not in baseline]:
        raise ConfigError("the baseline names one level of every factor", file=file, key="baseline", choices=missing)
    excluded = [_combination(c, names, file, f"exclude.{i}") for i, c in enumerate(spec.exclude)]
    protected = [_combination(c, names, file, f"protect.{i}") for i, c in enumerate(spec.protect)]
    arms = []
    for combination in itertools.product(*names.values()):
        levels = dict(zip(names, combination, strict=True))
        if any(_matches(levels, c) for c in excluded):
            continue
        name = arm_name(levels)
        arms.append(
            Arm(
                name=name,
                levels=levels,
                experiment=_resolve(spec, base, levels, file),
                protected=levels == baseline or any(_matches(levels, c) for c in protected),
                baseline=levels == baseline,
            )
        )
    if not any(arm.baseline for arm in arms):
        raise ConfigError(
            "the baseline is not among the arms",
            file=file,
            key="baseline",
            value=arm_name(baseline),
            choices=[arm.name for arm in arms],
        )
    return arms


def _resolve(spec: StudySpec, base: Experiment, levels: dict[str, str], file: str) -> Experiment:
    """The experiment of one combination of levels."""
    changes = {name: (factor.path, factor.named()[levels[name]]) for name, factor in spec.factors.items()}
    try:
        return override(base, list(changes.values()), file=file, where=f"arm {arm_name(levels)}")
    except ConfigError:
        # where one level is wrong by itself, the error names it and not the combination
        for name, change in changes.items():
            override(base, [change], file=file, where=f"factors.{name}.levels.{levels[name]}")
        raise


def _check_factors(spec: StudySpec, file: str) -> None:
    """A factor changes what training computes, and no two change the same place."""
    refused = {section: f"it is no part of a run's identity ({why})" for section, why in UNCOUNTED.items()}
    refused["seed"] = "the study's `seeds` vary it"
    for name, factor in spec.factors.items():
        if reason := refused.get(factor.path.split(".")[0]):
            raise ConfigError(
                f"cannot be a factor: {reason}", file=file, key=f"factors.{name}.path", value=factor.path
            )  # fmt: skip
    for (one, first), (other, second) in itertools.combinations(spec.factors.items(), 2):
        if overlap(first.path, second.path):
            raise ConfigError(
                f"changes the same place as factors.{one}.path ({first.path})",
                file=file, key=f"factors.{other}.path", value=second.path,
            )  # fmt: skip


def _combination(given: Combination, names: dict[str, list[str]], file: str, key: str) -> dict[str, str]:
    """A combination with its levels as names, checked against the factors."""
    result = {}
    for factor, level in given.items():
        if factor not in names:
            raise ConfigError("no such factor", file=file, key=key, value=factor, choices=list(names))
        name = level_name(level)
        if name not in names[factor]:
            raise ConfigError("no such level", file=file, key=f"{key}.{factor}", value=name, choices=names[factor])
        result[factor] = name
    return {factor: result[factor] for factor in names if factor in result}


def _matches(levels: dict[str, str], combination: dict[str, str]) -> bool:
    return all(levels[factor] == level for factor, level in combination.items())


def _rungs(scheduler: Scheduler, epochs: int) -> list[int]:
    """Epochs before the last at which cells may be stopped."""
    if not isinstance(scheduler, Asha):
        return []
    rungs = []
    rung = scheduler.grace_epochs
    while rung < epochs:
        rungs.append(rung)
        rung *= scheduler.reduction_factor
    return rungs


def _check_metric(spec: StudySpec, experiment: Experiment, epochs: int, file: str) -> None:
    """`epochs`: of the longest arm."""
    split = "test" if experiment.data.validation == "none" else "val"
    computed = [name for evaluation in experiment.evaluate for name in METRICS[evaluation.kind]]
    decided = [name.format(split=split) for name in computed] + ["train/loss", "train/probe_top1"]
    if spec.metric.name not in decided:
        hint = "the test set never decides; " if spec.metric.name.startswith("test/") and split == "val" else ""
        raise ConfigError(
            f"{hint}not a metric that the experiment computes", file=file, key="metric.name", value=spec.metric.name,
            choices=decided,
        )  # fmt: skip
    rungs = _rungs(spec.scheduler, epochs)
    for i, evaluation in enumerate(experiment.evaluate):
        every = evaluation.every_epochs
        own = [name.format(split=split) for name in METRICS[evaluation.kind]]
        unmeasured = [rung for rung in rungs if not every or rung % every]
        if spec.metric.name in own and unmeasured:
            raise ConfigError(
                f"is not measured at the epochs at which {spec.scheduler.kind} decides ({', '.join(map(str, unmeasured))}): "
                f"in the experiment, evaluate.{i}.every_epochs is {'null' if every is None else every} and must divide them",
                file=file, key="metric.name", value=spec.metric.name,
            )  # fmt: skip
    reported = [name.format(split="test") for name in computed if name.startswith("{split}")]
    if spec.metric.report not in reported:
        raise ConfigError(
            "not a metric that the experiment computes on the test set", file=file, key="metric.report",
            value=spec.metric.report, choices=reported,
        )  # fmt: skip


METRICS = {
    "probe": ["{split}/probe_top1", "{split}/probe_loss"],
    "knn": ["{split}/knn_top1"],
    "collapse": ["collapse/effective_rank", "collapse/participation_ratio"],
}
"""Metrics of each evaluation that a study can decide on or report."""
