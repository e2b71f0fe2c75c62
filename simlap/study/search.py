"""Hyperparameter search inside a study: its section of the study file, and where each arm is searched."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from simlap.config import Experiment, override
from simlap.config.load import overlap
from simlap.config.schema.base import Count, Strict, wrong
from simlap.errors import ConfigError
from simlap.study.arms import Arm, refused
from simlap.study.levels import ABSENT, Names, Scalar, level_name
from simlap.study.resolve import place, with_resources
from simlap.study.sampling import Number, Range

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec

Value = Number | str
"""Of a searched factor: a number of its range, or the name of one of its levels."""
Values = dict[str, Value]
FIRST_SEED = 1_000_000
"""Seeds of trials start here: far from those of a comparison, however many are added to it."""


class Searched(Strict):
    """A place in the config whose value is searched for."""

    path: str
    """Dotted path into the experiment; the value there is replaced. No place that `factors` compare, and none around one."""
    range: Range | None = None
    """Numbers that are tried."""
    levels: Annotated[list[JsonValue] | dict[str, JsonValue], Field(min_length=2)] | None = None
    """Values that are tried, instead of a range: by name, or a list of values that are their own names."""
    when: Annotated[dict[str, Scalar | list[Scalar]], Field(min_length=1)] | None = None
    """Levels of `factors`, one or a list of each: searched for in arms that have these, left as it is in others."""

    @model_validator(mode="after")
    def _has_values(self) -> Searched:
        if self.levels is None and self.range is None:
            raise wrong("range", None, "is required, or levels")
        if self.levels is not None and self.range is not None:
            raise wrong("levels", None, "cannot be given together with a range")
        names = [*map(level_name, self.levels)] if isinstance(self.levels, list) else []
        if len(set(names)) < len(names):
            raise wrong("levels", self.levels, "has a level twice")
        return self

    def named(self) -> dict[str, JsonValue]:
        """Level name -> value; empty for a range."""
        if self.levels is None:
            return {}
        return self.levels if isinstance(self.levels, dict) else {level_name(value): value for value in self.levels}

    def config_value(self, value: Value) -> JsonValue:
        """What the experiment has for a value."""
        return self.named()[str(value)] if self.levels is not None else value


Space = dict[str, Searched]
"""What is searched for in an arm, by name."""


class Search(Strict):
    """Values that each arm is tuned in before the arms are compared, by trials with seeds of their own."""

    factors: Annotated[dict[str, Searched], Field(min_length=1)]
    """What is searched for."""
    per: Literal["arm", "study"] = "arm"
    """Every arm is tuned by itself and compared at its own best; or the baseline alone, whose best all arms take."""
    trials: Count = 20
    """Of each search."""
    batch: Count = 4
    """So many trials are chosen at a time; the next ones when the results of all of them are known."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's tree-structured Parzen estimator, which draws at random until 10 trials have a value; or all at random."""
    seeds: Count = 1
    """A trial's value is the mean over so many seeds: the same ones for all trials, and never seeds of the comparison."""
    epochs: Count | None = None
    """Of a trial (default: those of the arm)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""

    def seed_list(self, taken: list[int]) -> list[int]:
        """Seeds of the trials. `taken`: those that the study file has for the comparison."""
        free = (number for number in itertools.count(FIRST_SEED) if number not in taken)
        return list(itertools.islice(free, self.seeds))


@dataclass(frozen=True)
class Tuner:
    """The searches of a study, checked: which arms are searched, where, and what comes of a choice of values."""

    search: Search
    conditions: dict[str, dict[str, frozenset[str]]]
    """Level names by factor, for each searched factor."""
    spec: StudySpec
    path: Path

    def space(self, arm: Arm) -> Space:
        """What is searched for in an arm; empty: nothing."""
        return {
            name: searched
            for name, searched in self.search.factors.items()
            if all(arm.levels[factor] in levels for factor, levels in self.conditions[name].items())
        }

    def experiment(self, arm: Arm, values: Mapping[str, Value], *, epochs: int | None = None) -> Experiment:
        """The arm's experiment with these values at the searched places. Raises ConfigError."""
        changes = [
            (searched.path, searched.config_value(values[name]))
            for name, searched in self.space(arm).items()
            if name in values
        ]
        if epochs is not None:
            changes.append(("train.epochs", epochs))
        where = f"search of arm {arm.name} ({values_text(values)})" if values else f"search.epochs of arm {arm.name}"
        made = override(arm.experiment, changes, file=str(self.path), where=where, folder=self.path.parent)
        return with_resources(made, self.spec.resources)

    def corners(self, arm: Arm) -> list[Values]:
        """Choices that together have both ends of every range, and every level."""
        sides = {
            name: [*searched.named()]
            if searched.range is None
            else [_end(searched.range, "low"), _end(searched.range, "high")]
            for name, searched in self.space(arm).items()
        }
        most = max(map(len, sides.values()), default=0)
        return [{name: side[min(i, len(side) - 1)] for name, side in sides.items()} for i in range(most)]


def make_tuner(spec: StudySpec, arms: list[Arm], path: Path) -> Tuner | None:
    """The searches of a study, None where it has none. Raises ConfigError for what cannot be searched."""
    if spec.search is None:
        return None
    file = str(path)
    names = Names(spec, set(spec.factors), file)
    conditions: dict[str, dict[str, frozenset[str]]] = {}
    for name, searched in spec.search.factors.items():
        key = f"search.factors.{name}"
        if name in spec.factors:
            raise ConfigError("is the name of a factor that is compared", file=file, key=key, value=name)
        if reason := refused(searched.path):
            raise ConfigError(f"cannot be searched for: {reason}", file=file, key=f"{key}.path", value=searched.path)
        if spec.search.epochs is not None and place(searched.path) == "train.epochs":
            raise ConfigError(
                "cannot be searched for beside search.epochs", file=file, key=f"{key}.path", value=searched.path
            )
        conditions[name] = {}
        for other, wanted in (searched.when or {}).items():
            names.known(other, f"{key}.when")
            values = wanted if isinstance(wanted, list) else [wanted]
            if not values:
                raise ConfigError(
                    "an empty list means that it is never searched for; name a level",
                    file=file,
                    key=f"{key}.when.{other}",
                )
            conditions[name][other] = frozenset(names.level(other, value, f"{key}.when.{other}") for value in values)
    tuner = Tuner(spec.search, conditions, spec, path)
    _check_arms(tuner, arms, file)
    return tuner


def values_text(values: Mapping[str, object]) -> str:
    """`lr=0.01 temperature=0.1`."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def _check_arms(tuner: Tuner, arms: list[Arm], file: str) -> None:
    """Every searched factor exists where it has to, changes no place twice, and has values that make experiments."""
    spaces = [(arm, tuner.space(arm)) for arm in arms]
    for name in tuner.search.factors:
        key = f"search.factors.{name}.when"
        if not any(name in space for _, space in spaces):
            raise ConfigError("matches no arm", file=file, key=key, choices=[arm.name for arm in arms[:6]])
        if tuner.search.per == "study" and not any(arm.baseline and name in space for arm, space in spaces):
            raise ConfigError("leaves out the baseline, which alone is searched with per: study", file=file, key=key)
    for arm, space in spaces:
        _check_places(tuner, arm, space, file)
        for values in tuner.corners(arm):
            tuner.experiment(arm, values)
            if tuner.search.epochs is not None:
                tuner.experiment(arm, {}, epochs=tuner.search.epochs)
                tuner.experiment(arm, values, epochs=tuner.search.epochs)


def _check_places(tuner: Tuner, arm: Arm, space: Space, file: str) -> None:
    compared = {f"factors.{f}.path": tuner.spec.factors[f].path for f, level in arm.levels.items() if level != ABSENT}
    searched = {f"search.factors.{name}.path": one.path for name, one in space.items()}
    for (key, path), (other, its_path) in itertools.product(searched.items(), (compared | searched).items()):
        if key == other:
            continue
        if place(path) == place(its_path):
            if other in compared:
                raise ConfigError(
                    f"cannot be searched for and compared at once: {other} is the same place ({its_path})",
                    file=file, key=key, value=path,
                )  # fmt: skip
            raise ConfigError(f"is the same place as {other} ({its_path})", file=file, key=key, value=path)
        if overlap(place(path), its_path) and len(place(path)) < len(place(its_path)):
            raise ConfigError(
                f"lies around {other} ({its_path}), whose value would be lost", file=file, key=key, value=path
            )  # fmt: skip


def _end(numbers: Range, which: Literal["low", "high"]) -> Value:
    end: float = getattr(numbers, which)
    return int(end) if numbers.type == "int" else end
