"""From a study's design to its arms: combinations of levels, each resolved to an experiment."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simlap.config import Experiment
from simlap.config.identity import UNCOUNTED
from simlap.errors import ConfigError
from simlap.study.designs import Design
from simlap.study.levels import Levels, matches
from simlap.study.levels import arm_name as arm_name
from simlap.study.resolve import RESOURCES, Resolver, place

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec


@dataclass(frozen=True)
class Arm:
    """One combination of levels, resolved to an experiment (with the base's seed)."""

    name: str
    levels: Levels
    """Level of every factor; `–` (ABSENT) of one that does not exist in this arm."""
    experiment: Experiment
    protected: bool
    baseline: bool


def make_arms(spec: StudySpec, design: Design, base: Experiment, path: Path) -> list[Arm]:
    """The arms of a study over a base experiment, in the order of the design.

    Args:
        spec: the study, with its levels drawn.
        design: its combinations.
        base: the experiment that the levels change.
        path: of the study file, which experiment files are relative to.

    Raises:
        ConfigError: levels that make no experiment.
    """
    _check_factors(spec, design, str(path))
    resolve = Resolver(
        {name: factor.path for name, factor in spec.factors.items()},
        {name: factor.named() for name, factor in spec.factors.items()},
        base, spec.resources, path,
    )  # fmt: skip
    return [
        Arm(
            name=arm_name(levels),
            levels=levels,
            experiment=resolve(levels),
            protected=levels == design.baseline or any(matches(levels, c) for c in design.protected),
            baseline=levels == design.baseline,
        )
        for levels in design.arms
    ]


def refused(path: str) -> str | None:
    """Why a study cannot vary what lies at a path; None where it can."""
    if _section(path) == "seed":
        return "the study's `seeds` vary it"
    why = UNCOUNTED.get(_section(path))
    return why and f"it is no part of a run's identity ({why})"


def _section(path: str) -> str:
    """Of the experiment file, at whatever stage."""
    return next((key for key in path.split(".") if key != "pretrain"), "")


def _check_factors(spec: StudySpec, design: Design, file: str) -> None:
    """A factor changes what training computes, or what arms that differ in something else run on. No two in one arm change the
    same place."""
    for name, factor in spec.factors.items():
        # arms that differ in resources and in nothing else are found out when they are named
        if (reason := refused(factor.path)) and _section(factor.path) != RESOURCES:
            raise ConfigError(
                f"cannot be a factor: {reason}", file=file, key=f"factors.{name}.path", value=factor.path
            )  # fmt: skip
    for (one, first), (other, second) in itertools.combinations(spec.factors.items(), 2):
        if place(first.path) == place(second.path) and not design.conditions.exclusive(one, other):
            raise ConfigError(
                f"changes the same place as factors.{one}.path ({first.path})",
                file=file, key=f"factors.{other}.path", value=second.path,
            )  # fmt: skip
