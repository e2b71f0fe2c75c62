"""The study file: factors x seeds over a base experiment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from simlap.config import Experiment, load_experiment, override, parse_override, validate, yaml
from simlap.config.schema import Count, Positive, Resources, Strict
from simlap.config.schema.base import wrong
from simlap.errors import ConfigError
from simlap.run.failures import Retries
from simlap.study.arms import Arm, make_arms
from simlap.study.axes import with_drawn_levels
from simlap.study.budget import Budget
from simlap.study.declared import check_declared
from simlap.study.designs import make_design
from simlap.study.fractional import AliasTable
from simlap.study.levels import Combination, Scalar, level_name
from simlap.study.metric import check_metrics
from simlap.study.reach import Detect
from simlap.study.resolve import with_resources
from simlap.study.sampling import Sample
from simlap.study.scheduling import NoScheduler, Race, Scheduler
from simlap.study.search import Search, Tuner, make_tuner

Levels = list[JsonValue] | dict[str, JsonValue]


class Factor(Strict):
    """A place in the config and the values it takes."""

    path: str
    """Dotted path into the experiment; the value there is replaced. One factor's path may lie inside another's (`method` and
    `method.pairs`): the outer one is applied first."""
    levels: Annotated[Levels, Field(min_length=1)] | None = None
    """Values by name, or a list of values that are their own names. At `pretrain`: experiment files, relative to the study
    file."""
    sample: Sample | None = None
    """A range from which levels are taken, instead of `levels`."""
    when: Annotated[dict[str, Scalar | list[Scalar]], Field(min_length=1)] | None = None
    """Levels of other factors, one or a list of each, beside which this factor exists; in other arms nothing is changed at its
    place."""

    @model_validator(mode="after")
    def _has_levels(self) -> Factor:
        if self.levels is None and self.sample is None:
            raise wrong("levels", None, "is required, or a sample")
        if self.levels is not None and self.sample is not None:
            raise wrong("sample", None, "cannot be given together with levels")
        for other, wanted in (self.when or {}).items():
            if wanted == []:
                raise wrong(f"when.{other}", None, "an empty list means that the factor never exists; name a level")
        return self

    def named(self) -> dict[str, JsonValue]:
        """Level name -> value. `load_study` has filled in those of a sample."""
        assert self.levels is not None
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


class DeclaredEpoch(Strict):
    """All arms are compared at one epoch, on `metric.name`."""

    epoch: Count
    """Every arm has to be measured at it."""


class StudySpec(Strict):
    """A study as the file has it."""

    name: str
    """Name of the study, of its folder and of its MLflow experiment."""
    schema_version: Literal[1] = 1
    """Version of this format."""
    base: str
    """Experiment file, relative to the study file."""
    set: dict[str, JsonValue] = {}
    """Values at dotted paths, for all arms."""
    factors: Annotated[dict[str, Factor], Field(min_length=1)]
    """What is varied."""
    zip: list[list[str]] = []
    """Factors whose levels go together, the first with the first and so on, and not in all combinations: `[[lr, batch_size]]`."""
    design: Literal["factorial", "fractional", "one_at_a_time", "leave_one_out", "list"] = "factorial"
    """All combinations of levels; a fraction of those of two-level factors; the baseline and each other level by itself; the
    baseline, the arm in which every factor (of two levels) has its other level, and those in which all but one have; or the arms
    listed in `arms`."""
    resolution: Literal[3, 4, 5] | None = None
    """Of `design: fractional`: the smallest standard design in which effects of so few factors are not confounded: 3 keeps main
    effects apart from each other, 4 also from two-factor interactions, 5 also those from each other."""
    runs: Annotated[int, Field(ge=4)] | None = None
    """Of `design: fractional`: the standard design of so many arms."""
    generators: Annotated[list[str], Field(min_length=1)] | None = None
    """Of `design: fractional`: factors that are products of others, `[d = a*b*c]`."""
    arms: list[Combination] | None = None
    """Of `design: list`: combinations of levels; a factor that is not named has the baseline's level."""
    exclude: list[Combination] = []
    """Combinations that are left out; a factor that is not named matches any level."""
    baseline: Combination
    """The arm that all others are compared with: one level of every factor that exists in it; of a sampled one, any value of its
    range."""
    protect: list[Combination] = []
    """Arms that always run to the end; the baseline always does."""
    search: Search | None = None
    """Hyperparameters that are tuned before the arms are compared."""
    seeds: Count | list[int] = 5
    """How many seeds (0, 1, ...), or which. Every arm gets the same ones."""
    metric: Metric = Metric()
    compare: Literal["common", "last", "best_so_far"] | DeclaredEpoch = "common"
    """Where two arms are compared: on `metric.report` at the end where all planned seeds of both got there, else on
    `metric.name` at the highest epoch that all of them reached (`common`); at the end or not at all (`last`); by each run's best
    `metric.name` up to the highest epoch that all reached (`best_so_far`); or on `metric.name` at an epoch (`{epoch: 5}`)."""
    margin: Positive | None = None
    """Differences to the baseline below it do not matter, in the units of `metric.report`: the report tests whether arms are
    equivalent within it. (A race has its own, `scheduler.margin`.)"""
    claims: list[str] = []
    """What the study is to show; `simlap check` says whether it does."""
    detect: Positive | Detect | None = None
    """The difference to the baseline that the study is to find, in the units of `metric.report` (default: none in particular)."""
    scheduler: Scheduler = NoScheduler(kind="none")
    resources: Resources | None = None
    """Resources of every cell and of its earlier stages (default: those of their experiments); a factor has the last word."""
    retries: Retries = Retries()
    budget: Budget | None = None
    """What all launches together may take (default: no limit)."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("must be a folder's name: letters, digits, '.', '_' and '-', the first a letter or digit")
        return name

    @field_validator("seeds", mode="before")
    @classmethod
    def _counts_or_lists(cls, seeds: object) -> object:
        if isinstance(seeds, bool) or not isinstance(seeds, int | list) or (isinstance(seeds, int) and seeds < 1):
            raise ValueError("must be how many (a whole number, 1 or more), or a list of whole numbers")
        if isinstance(seeds, list) and (not seeds or any(seed in seeds[:i] for i, seed in enumerate(seeds))):
            raise ValueError("must be distinct, and at least one")
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
    aliases: AliasTable | None = None
    """Of `design: fractional`: what its arms cannot tell apart."""
    tuner: Tuner | None = None
    """Of a study with a `search`."""

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
    _check_seeds(spec, file)
    spec = with_drawn_levels(spec, file)
    design = make_design(spec, file)
    arms = make_arms(spec, design, base, Path(path))
    check_metrics(spec, [arm.experiment for arm in arms], file)
    check_declared(spec, arms, file)
    return Study(spec, Path(path), text, arms, base, design.aliases, make_tuner(spec, arms, Path(path)))


def _check_seeds(spec: StudySpec, file: str) -> None:
    """A race needs as many seeds as it looks at first."""
    if isinstance(spec.scheduler, Race):
        try:
            spec.scheduler.looks(len(spec.seed_list()))
        except ValueError as error:
            raise ConfigError(str(error), file=file, key="seeds", value=spec.seeds) from None
