"""The study file: factors x seeds over a base experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from simlap.config import Experiment, load_experiment, override, parse_override, validate, yaml
from simlap.config.schema import Count, Resources, Strict
from simlap.study.arms import Arm, Combination, level_name, make_arms, with_resources
from simlap.study.metric import check_metric
from simlap.study.scheduling import NoScheduler, Scheduler

Levels = list[JsonValue] | dict[str, JsonValue]


class Factor(Strict):
    """A place in the config and the values it takes."""

    path: str
    """Dotted path into the experiment; the value there is replaced. One factor's path may lie inside another's (`method` and
    `method.pairs`): the outer one is applied first."""
    levels: Annotated[Levels, Field(min_length=1)]
    """Values by name, or a list of values that are their own names. At `pretrain`: experiment files, relative to the study
    file."""

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
    design: Literal["factorial", "one_at_a_time", "leave_one_out", "list"] = "factorial"
    """All combinations of levels; the baseline and each other level by itself; the baseline, the arm in which every factor (of
    two levels) has its other level, and those in which all but one have; or the arms listed in `arms`."""
    arms: list[Combination] | None = None
    """Of `design: list`: combinations of levels; a factor that is not named has the baseline's level."""
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
    """Resources of every cell and of its earlier stages (default: those of their experiments)."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) != len(seeds)):
            raise ValueError("seeds must be distinct, and at least one")
        return seeds

    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


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
    folder = Path(path).parent
    base = load_experiment(folder / spec.base)
    base = override(base, list(spec.set.items()), file=file, where="set", folder=folder)
    base = override(base, [parse_override(change) for change in overrides], file="command line", where="--set")
    base = with_resources(base, spec.resources)
    arms = make_arms(spec, base, Path(path))
    epochs = max(arm.experiment.train.epochs for arm in arms)
    for arm in arms:
        check_metric(spec, arm.experiment, epochs, file)
    return Study(spec, Path(path), text, arms, base)
