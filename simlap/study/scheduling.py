"""How a study spends its epochs: the `scheduler` of a study file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from simlap.config import validate, yaml
from simlap.config.schema import Count, Positive, Strict
from simlap.errors import ConfigError

_COMMA = re.compile(r",(?![^\[\]]*\])")
"""Between settings, and not within a list."""


class NoScheduler(Strict):
    """Every cell runs to the end."""

    kind: Literal["none"]

    def rungs(self, epochs: int) -> list[int]:
        """Epochs before the last of `epochs` at which the scheduler decides, for which the metric has to be measured."""
        return []


class Asha(Strict):
    """Asynchronous successive halving (Li et al. 2020), Ray Tune's."""

    kind: Literal["asha"]
    grace_epochs: Count = 5
    """No cell is stopped before it; the first rung."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Rungs are grace_epochs x reduction_factor^k; at each, the best 1/reduction_factor goes on."""

    def rungs(self, epochs: int) -> list[int]:
        """Epochs before the last of `epochs` at which the scheduler decides, for which the metric has to be measured."""
        rungs = []
        rung = self.grace_epochs
        while rung < epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs


class Race(Strict):
    """Paired sequential comparison: all arms start with few seeds, and seeds are added to undecided arms only.

    The study's `seeds` are the most that an arm gets. Differences are paired by seed and tested at the last epoch, with
    group-sequential t tests.
    """

    kind: Literal["race"]
    against: Literal["baseline", "best"] = "baseline"
    """What an arm is compared with: the baseline, or every other arm (it is dropped when one of them beats it)."""
    alpha: Annotated[float, Field(gt=1e-6, lt=0.5)] = 0.05
    """Probability that any arm is wrongly called better or worse, over all arms and looks; two-sided. As much again for arms
    wrongly called equivalent."""
    margin: Positive | None = None
    """Differences below it do not matter, in the metric's units; an arm whose interval lies within it is equivalent. Without
    it no arm is ever called equivalent."""
    first_seeds: Annotated[int, Field(ge=3)] = 4
    """Seeds of every arm before the first look."""
    step: Count = 2
    """Seeds that undecided arms get before each further look."""
    spending: Literal["pocock", "obrien_fleming"] = "pocock"
    """How alpha is spent over the looks (Lan & DeMets 1983): evenly, which decides early, or mostly at the last one, where
    the test is then nearly that of a study of fixed size."""
    futility: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05
    """An arm is given up when the seeds that are left would decide it with a lower probability than this; 0: never."""
    futility_epochs: list[Count] = []
    """Epochs before the last at which arms may be given up as well, ascending. Nothing else is decided there."""

    @model_validator(mode="after")
    def _ascending(self) -> Race:
        if self.futility_epochs != sorted(set(self.futility_epochs)):
            raise ValueError("futility_epochs must ascend")
        if self.futility_epochs and self.futility == 0:
            raise ValueError("futility_epochs have no effect with futility: 0")
        return self

    def rungs(self, epochs: int) -> list[int]:
        """Epochs before the last of `epochs` at which the scheduler decides, for which the metric has to be measured."""
        return [epoch for epoch in self.futility_epochs if epoch < epochs]

    def looks(self, seeds: int) -> tuple[int, ...]:
        """Seeds at each look when an arm gets `seeds` at most. Raises ValueError where they do not suffice for the first."""
        if seeds < self.first_seeds:
            raise ValueError(f"race looks at {self.first_seeds} seeds first, and the study has {seeds}")
        return (*range(self.first_seeds, seeds, self.step), seeds)


Scheduler = Annotated[NoScheduler | Asha | Race, Field(discriminator="kind")]


class Chosen(Strict):
    """The scheduler of a study file, by itself."""

    scheduler: Scheduler = NoScheduler(kind="none")


def parse_scheduler(text: str, own: NoScheduler | Asha | Race) -> NoScheduler | Asha | Race:
    """A scheduler as the command line has it: `asha`, or `asha:grace_epochs=1,reduction_factor=2`. Raises ConfigError.

    Args:
        text: a kind, and maybe settings; their values are read as YAML.
        own: the study's. What `text` does not say is as it is there, where that is of this kind, else the default.
    """
    where = f"command line, --scheduler {text}"
    kind, colon, rest = text.partition(":")
    given: dict[str, Any] = {"kind": kind}
    for setting in _COMMA.split(rest) if colon else ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigError("a setting is written key=value", file=where, value=setting)
        if key in given:
            raise ConfigError("is given twice", file=where, key=key)
        given[key] = yaml.parse(value, file=f"{where}, {key}")
    settled = own.model_dump(mode="json") if own.kind == kind else {}
    return validate(Chosen, {"scheduler": {**settled, **given}}, file=where).scheduler


def label(scheduler: NoScheduler | Asha | Race) -> str:
    """Its kind, and its settings as far as they are not the defaults."""
    settings = scheduler.model_dump(exclude={"kind"}, exclude_defaults=True)
    return " ".join([scheduler.kind, *(f"{key}={_plain(value)}" for key, value in settings.items())])


def defaults(scheduler: NoScheduler | Asha | Race) -> str:
    """The defaults of its kind, in words."""
    settings = type(scheduler).model_validate({"kind": scheduler.kind}).model_dump(exclude={"kind"})
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, [])) or "no settings"


def _plain(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
