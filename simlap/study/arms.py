"""From factors and a design to arms: combinations of levels, each resolved to an experiment."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from simlap.config import Experiment, override
from simlap.config.identity import UNCOUNTED
from simlap.config.load import overlap
from simlap.config.schema import Resources
from simlap.errors import ConfigError

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec

Combination = dict[str, str | bool | int | float | None]
Levels = dict[str, str]
"""Level by factor."""


@dataclass(frozen=True)
class Arm:
    """One combination of levels, resolved to an experiment (with the base's seed)."""

    name: str
    levels: Levels
    experiment: Experiment
    protected: bool
    baseline: bool


def level_name(value: JsonValue) -> str:
    """What a level without a name is called: a word as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def arm_name(levels: Levels) -> str:
    return " ".join(f"{factor}={level}" for factor, level in levels.items())


def make_arms(spec: StudySpec, base: Experiment, path: Path) -> list[Arm]:
    """The arms of a study over a base experiment, in the order of the design.

    Args:
        spec: the study.
        base: the experiment that the levels change.
        path: of the study file, which experiment files are relative to.

    Raises:
        ConfigError: a combination that does not exist, or levels that make no experiment.
    """
    file = str(path)
    _check_factors(spec, file)
    names = {factor: list(definition.named()) for factor, definition in spec.factors.items()}
    for factor, definition in spec.factors.items():
        if isinstance(definition.levels, list) and len(names[factor]) != len(definition.levels):
            raise ConfigError("a level is given twice", file=file, key=f"factors.{factor}.levels")
    baseline = _combination(spec.baseline, names, file, "baseline")
    if missing := [factor for factor in names if factor not in baseline]:
        raise ConfigError("the baseline names one level of every factor", file=file, key="baseline", choices=missing)
    excluded = [_combination(c, names, file, f"exclude.{i}") for i, c in enumerate(spec.exclude)]
    protected = [_combination(c, names, file, f"protect.{i}") for i, c in enumerate(spec.protect)]
    arms = [
        Arm(
            name=arm_name(levels),
            levels=levels,
            experiment=_resolve(spec, base, levels, path),
            protected=levels == baseline or any(_matches(levels, c) for c in protected),
            baseline=levels == baseline,
        )
        for levels in _combinations(spec, names, baseline, file)
        if not any(_matches(levels, c) for c in excluded)
    ]
    if not any(arm.baseline for arm in arms):
        raise ConfigError(
            "the baseline is not among the arms",
            file=file,
            key="baseline",
            value=arm_name(baseline),
            choices=[arm.name for arm in arms],
        )
    return arms


def _combinations(spec: StudySpec, names: dict[str, list[str]], baseline: Levels, file: str) -> Iterator[Levels]:
    """The combinations of levels that the design asks for, none twice."""
    if (spec.design == "list") != (spec.arms is not None):
        message = "is required with design: list" if spec.arms is None else "is for design: list only"
        raise ConfigError(message, file=file, key="arms")
    match spec.design:
        case "factorial":
            for combination in itertools.product(*names.values()):
                yield dict(zip(names, combination, strict=True))
        case "one_at_a_time":
            yield baseline
            for factor, all_levels in names.items():
                yield from ({**baseline, factor: level} for level in all_levels if level != baseline[factor])
        case "leave_one_out":
            changed = {}
            for factor, all_levels in names.items():
                if len(all_levels) != 2:
                    raise ConfigError(
                        f"leave_one_out needs two levels of every factor; {factor} has {len(all_levels)}",
                        file=file, key="design", value=spec.design,
                    )  # fmt: skip
                changed[factor] = next(level for level in all_levels if level != baseline[factor])
            yield from (baseline, changed)
            if len(names) > 1:  # without its only factor it is the baseline
                yield from ({**changed, factor: baseline[factor]} for factor in names)
        case "list":
            seen: dict[str, int] = {}
            for i, given in enumerate(spec.arms or []):
                levels = {**baseline, **_combination(given, names, file, f"arms.{i}")}
                if (name := arm_name(levels)) in seen:
                    raise ConfigError(f"is the same as arms.{seen[name]}", file=file, key=f"arms.{i}", value=name)
                seen[name] = i
                yield levels


def _resolve(spec: StudySpec, base: Experiment, levels: Levels, path: Path) -> Experiment:
    """The experiment of one combination of levels. Where a factor lies inside another one, the higher one is applied first."""
    changes = {name: (factor.path, factor.named()[levels[name]]) for name, factor in spec.factors.items()}
    folder = path.parent
    where = f"arm {arm_name(levels)}"
    try:
        return with_resources(
            override(base, list(changes.values()), file=str(path), where=where, folder=folder), spec.resources
        )
    except ConfigError:
        # where one level is wrong by itself, the error names it and not the combination
        for name, change in sorted(changes.items(), key=lambda item: _place(item[1][0]).count(".")):
            above = [other for other in changes.values() if _is_above(other[0], change[0])]
            where = f"factors.{name}.levels.{levels[name]}"
            override(base, [*above, change], file=str(path), where=where, folder=folder)
        raise


def with_resources(experiment: Experiment, resources: Resources | None) -> Experiment:
    """The experiment, and its earlier stages, with the study's resources where it has some."""
    if resources is None:
        return experiment
    pretrain = experiment.pretrain and with_resources(experiment.pretrain, resources)
    return experiment.model_copy(update={"resources": resources, "pretrain": pretrain})


def _check_factors(spec: StudySpec, file: str) -> None:
    """A factor changes what training computes, and no two change the same place."""
    refused = {section: f"it is no part of a run's identity ({why})" for section, why in UNCOUNTED.items()}
    refused["seed"] = "the study's `seeds` vary it"
    for name, factor in spec.factors.items():
        section = next((key for key in factor.path.split(".") if key != "pretrain"), "")
        if reason := refused.get(section):
            raise ConfigError(
                f"cannot be a factor: {reason}", file=file, key=f"factors.{name}.path", value=factor.path
            )  # fmt: skip
    for (one, first), (other, second) in itertools.combinations(spec.factors.items(), 2):
        if _place(first.path) == _place(second.path):
            raise ConfigError(
                f"changes the same place as factors.{one}.path ({first.path})",
                file=file, key=f"factors.{other}.path", value=second.path,
            )  # fmt: skip


def _place(path: str) -> str:
    """What a value at `path` replaces: a changed `kind` or `source` replaces the whole node."""
    above, _, last = path.rpartition(".")
    return above if last in ("kind", "source") else path


def _is_above(path: str, other: str) -> bool:
    """Whether a change at `path` replaces a node that `other` lies in."""
    return overlap(_place(path), other) and len(_place(path)) < len(_place(other))


def _combination(given: Combination, names: dict[str, list[str]], file: str, key: str) -> Levels:
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


def _matches(levels: Levels, combination: Levels) -> bool:
    return all(levels[factor] == level for factor, level in combination.items())
