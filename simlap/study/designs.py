"""Designs: which combinations of levels become arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simlap.errors import ConfigError
from simlap.study.axes import Axis, groups, make_axes
from simlap.study.fractional import AliasTable, DesignError, Fraction, aliases, generated, standard
from simlap.study.levels import ABSENT, Conditions, Levels, Names, arm_name, matches, sort

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec

_KEYS = {"arms": "list", "resolution": "fractional", "runs": "fractional", "generators": "fractional"}
"""Keys of one design only."""
_MAX_CHOICES = 6


@dataclass(frozen=True)
class Design:
    """The combinations of a study."""

    arms: list[Levels]
    """In the order of the design, distinct, without the excluded ones."""
    baseline: Levels
    protected: list[Levels]
    aliases: AliasTable | None
    """Of a fractional design."""
    conditions: Conditions


def make_design(spec: StudySpec, file: str) -> Design:
    """The design of a study whose levels are drawn (`with_drawn_levels`). Raises ConfigError."""
    maker = _Maker(spec, file)
    excluded = [maker.names.combination(c, f"exclude.{i}") for i, c in enumerate(spec.exclude)]
    protected = [maker.names.combination(c, f"protect.{i}") for i, c in enumerate(spec.protect)]
    made = list(maker.combinations())
    arms = [levels for levels in made if not any(matches(levels, c) for c in excluded)]
    if maker.baseline not in arms:
        cause = next((f": exclude.{i} leaves it out" for i, c in enumerate(excluded) if matches(maker.baseline, c)), "")
        raise ConfigError(
            f"the baseline is not among the arms{cause}", file=file, key="baseline", value=arm_name(maker.baseline),
            choices=_few(arm_name(levels) for levels in arms),
        )  # fmt: skip
    for key, combinations, among in (("exclude", excluded, made), ("protect", protected, arms)):
        for i, combination in enumerate(combinations):
            if not any(matches(levels, combination) for levels in among):
                raise ConfigError(
                    "matches no arm", file=file, key=f"{key}.{i}", value=arm_name(combination),
                    choices=_few(arm_name(levels) for levels in among),
                )  # fmt: skip
    table = replace(aliases(maker.fraction), excluded=len(made) - len(arms)) if maker.fraction else None
    return Design(arms, maker.baseline, protected, table, maker.conditions)


def _few(names: Iterable[str]) -> list[str]:
    """The first of many choices."""
    names = list(names)
    return names if len(names) <= _MAX_CHOICES else [*names[:_MAX_CHOICES], f"... ({len(names)} arms)"]


class _Maker:
    def __init__(self, spec: StudySpec, file: str) -> None:
        self.spec, self.file = spec, file
        for key, design in _KEYS.items():
            if getattr(spec, key) is not None and spec.design != design:
                raise ConfigError(f"is for design: {design} only", file=file, key=key)
        if spec.design == "list" and spec.arms is None:
            raise ConfigError("is required with design: list", file=file, key="arms")
        together = {factor for group in groups(spec, file) if len(group) > 1 for factor in group}
        self.names = Names(spec, together, file)
        self.conditions = Conditions(spec, self.names, file)
        self.axes = make_axes(spec, self.names, file)
        self.full = self._baseline()
        """The baseline, with a level also of factors that do not exist in it."""
        self.baseline = self.conditions.reduce(self.full)
        self.fraction = self._fraction() if spec.design == "fractional" else None

    def combinations(self) -> Iterator[Levels]:
        """The combinations that the design asks for, none twice."""
        match self.spec.design:
            case "factorial":
                return self._factorial()
            case "fractional":
                return self._fractional()
            case "one_at_a_time":
                return self._distinct(self._one_at_a_time())
            case "leave_one_out":
                return self._distinct(self._leave_one_out())
            case "list":
                return self._listed()

    def _factorial(self) -> Iterator[Levels]:
        """Axes are crossed in the order in which factors depend on each other: combinations that differ only in levels of factors
        that do not exist there are never made."""
        axis_of = {factor: axis for axis in self.axes for factor in axis.factors}
        depends = {
            axis.label: {axis_of[other].label for factor in axis.factors for other in self.conditions.needs[factor]}
            for axis in self.axes
        }
        place = {axis.label: i for i, axis in enumerate(self.axes)}
        partial: list[tuple[tuple[int, ...], Levels]] = [((0,) * len(self.axes), {})]
        for label in sort(depends, self.file):
            i = place[label]
            axis = self.axes[i]
            grown = []
            for order, levels in partial:
                exists = [self.conditions.applies(factor, levels) for factor in axis.factors]
                seen = set()
                for j, point in enumerate(axis.points):
                    reduced = tuple(level if here else ABSENT for level, here in zip(point, exists, strict=True))
                    if reduced not in seen:
                        seen.add(reduced)
                        grown.append(((*order[:i], j, *order[i + 1 :]), levels | axis.at(reduced)))
            partial = grown
        partial.sort(key=lambda item: item[0])  # as a product in the order of the file has them
        for _, levels in partial:
            yield {factor: levels[factor] for factor in self.names.levels}

    def _one_at_a_time(self) -> Iterator[Levels]:
        yield self.full
        for axis in self.axes:
            yield from ({**self.full, **axis.at(point)} for point in axis.points if point != axis.point(self.full))

    def _leave_one_out(self) -> Iterator[Levels]:
        changed = self.full | {f: level for axis in self.axes for f, level in axis.at(self._other(axis)).items()}
        yield from (self.full, changed)
        if len(self.axes) > 1:  # without its only factor it is the baseline
            yield from ({**changed, **axis.at(axis.point(self.full))} for axis in self.axes)

    def _fractional(self) -> Iterator[Levels]:
        assert self.fraction is not None
        low = [axis.at(axis.point(self.full)) for axis in self.axes]
        high = [axis.at(self._other(axis)) for axis in self.axes]
        for run in self.fraction.runs():
            levels = {f: level for i, up in enumerate(run) for f, level in (high if up else low)[i].items()}
            yield {factor: levels[factor] for factor in self.names.levels}

    def _listed(self) -> Iterator[Levels]:
        seen: dict[str, int] = {}
        for i, given in enumerate(self.spec.arms or []):
            key = f"arms.{i}"
            named = self.names.combination(given, key)
            levels = dict(self.full)
            for axis in self.axes:
                levels |= axis.at(self._completed(axis, named, key))
            levels = self.conditions.reduce(levels)
            for factor in named:
                if levels[factor] == ABSENT:
                    raise ConfigError(
                        f"does not exist in this arm (factors.{factor}.when)", file=self.file, key=f"{key}.{factor}",
                        value=named[factor],
                    )  # fmt: skip
            if (name := arm_name(levels)) in seen:
                raise ConfigError(f"is the same as arms.{seen[name]}", file=self.file, key=key, value=name)
            seen[name] = i
            yield levels

    def _completed(self, axis: Axis, named: Levels, key: str) -> tuple[str, ...]:
        """The point of an axis that a combination means: the baseline's where it names none of its factors."""
        given = {factor: named[factor] for factor in axis.factors if factor in named}
        if not given:
            return axis.point(self.full)
        return self._pick(axis, given, key)

    def _pick(self, axis: Axis, given: Levels, key: str) -> tuple[str, ...]:
        """The only point with these levels."""
        fitting = [point for point in axis.points if matches(axis.at(point), given)]
        if len(fitting) != 1:
            what = "do not go together" if not fitting else "go with several levels of the others: name them too"
            raise ConfigError(
                f"levels of {axis.label}, which are varied together, {what}", file=self.file, key=key, value=arm_name(given),
                choices=_few(arm_name(axis.at(point)) for point in fitting or axis.points),
            )  # fmt: skip
        return fitting[0]

    def _baseline(self) -> Levels:
        given = self.names.combination(self.spec.baseline, "baseline")
        full = {factor: given.get(factor, levels[0]) for factor, levels in self.names.levels.items()}
        reduced = self.conditions.reduce(full)
        if missing := [factor for factor in full if factor not in given and reduced[factor] != ABSENT]:
            raise ConfigError(
                f"must name one level of every factor; there is none of {', '.join(missing)}", file=self.file, key="baseline"
            )  # fmt: skip
        for axis in self.axes:
            if len(axis.factors) > 1 and (named := {f: given[f] for f in axis.factors if f in given}):
                whole = len(named) == len(axis.factors)
                point = axis.point(full)
                if whole or point not in axis.points:
                    full |= axis.at(self._pick(axis, named, "baseline"))
        return full

    def _other(self, axis: Axis) -> tuple[str, ...]:
        """The point of a two-level axis that is not the baseline's."""
        if len(axis.points) != 2:
            raise ConfigError(
                f"{self.spec.design} needs two levels of every factor; {axis.label} has {len(axis.points)}",
                file=self.file, key="design", value=self.spec.design,
            )  # fmt: skip
        return next(point for point in axis.points if point != axis.point(self.full))

    def _distinct(self, combinations: Iterator[Levels]) -> Iterator[Levels]:
        """Reduced by conditions. A design that says nothing about a factor is refused."""
        seen: set[tuple[str, ...]] = set()
        for levels in combinations:
            reduced = self.conditions.reduce(levels)
            if tuple(reduced.values()) in seen:
                factor = next(f for f, level in reduced.items() if level == ABSENT)
                raise ConfigError(
                    f"does not exist in the arm that {self.spec.design} would change it in ({arm_name(reduced)}): "
                    "choose another baseline or design",
                    file=self.file, key=f"factors.{factor}.when",
                )  # fmt: skip
            seen.add(tuple(reduced.values()))
            yield reduced

    def _fraction(self) -> Fraction:
        spec, file = self.spec, self.file
        given = [key for key in ("resolution", "runs", "generators") if getattr(spec, key) is not None]
        if len(given) != 1:
            what = f"not {' and '.join(given)}" if given else "none is given"
            raise ConfigError(
                f"fractional needs one of resolution, runs and generators; {what}", file=file, key="design", value=spec.design
            )  # fmt: skip
        if conditional := [factor for factor, needs in self.conditions.needs.items() if needs]:
            raise ConfigError(
                "fractional needs every factor in every arm", file=file, key=f"factors.{conditional[0]}.when"
            )  # fmt: skip
        for axis in self.axes:
            self._other(axis)
        labels = [axis.label for axis in self.axes]
        try:
            if spec.generators is None:
                return standard(labels, resolution=spec.resolution, runs=spec.runs)
            places = {factor: i for i, axis in enumerate(self.axes) for factor in (*axis.factors, axis.label)}
            return generated(labels, places, spec.generators)
        except DesignError as error:
            value = ", ".join(error.value) if isinstance(error.value, list) else error.value
            raise ConfigError(error.message, file=file, key=error.key, value=value, choices=error.choices) from None
