"""Levels by name: combinations of them as a study file writes them, and where a conditional factor exists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from pydantic import JsonValue

from simlap.errors import ConfigError

if TYPE_CHECKING:
    from simlap.study.spec import StudySpec

Scalar = str | bool | int | float | None
Combination = dict[str, Scalar]
Levels = dict[str, str]
"""Level by factor."""
ABSENT = "–"
"""The level of a factor that does not exist in an arm (`when`)."""


def level_name(value: JsonValue) -> str:
    """What a level without a name is called: a word as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def arm_name(levels: Levels) -> str:
    """`factor=level` of every factor that exists there."""
    return " ".join(f"{factor}={level}" for factor, level in levels.items() if level != ABSENT)


def matches(levels: Levels, combination: Levels) -> bool:
    """Whether an arm has the levels of a combination; one that names no factor matches every arm."""
    return all(levels[factor] == level for factor, level in combination.items())


class Names:
    """The factors and levels of a study, by which its file calls them.

    Raises:
        ConfigError: a level that is given twice.
    """

    def __init__(self, spec: StudySpec, together: set[str], file: str) -> None:
        """`together`: factors of axes with others, where one level may stand at several positions."""
        self._spec, self._file = spec, file
        self.positions: dict[str, list[str]] = {}
        self.levels: dict[str, list[str]] = {}
        for factor, definition in spec.factors.items():
            levels = self.positions[factor] = [*map(level_name, definition.levels or ())]
            self.levels[factor] = list(dict.fromkeys(levels))
            key = f"factors.{factor}.levels"
            if ABSENT in levels:
                raise ConfigError("stands for a factor that does not exist in an arm", file=file, key=key, value=ABSENT)
            if len(self.levels[factor]) != len(levels) and factor not in together:
                twice = next(level for i, level in enumerate(levels) if level in levels[:i])
                raise ConfigError("a level is given twice", file=file, key=key, value=twice)

    def known(self, factor: str, key: str) -> str:
        """The factor, checked."""
        if factor not in self.levels:
            raise ConfigError("no such factor", file=self._file, key=key, value=factor, choices=list(self.levels))
        return factor

    def level(self, factor: str, value: Scalar, key: str) -> str:
        """The name of a factor's level, checked."""
        sample = self._spec.factors[factor].sample
        number = sample.level(value) if sample else None
        name = level_name(value if number is None else number)
        if name not in self.levels[factor]:
            raise ConfigError("no such level", file=self._file, key=key, value=name, choices=self.levels[factor])
        return name

    def combination(self, given: Combination, key: str) -> Levels:
        """A combination with its levels as names, in the order of the factors."""
        levels = {
            self.known(factor, key): self.level(factor, value, f"{key}.{factor}") for factor, value in given.items()
        }
        return {factor: levels[factor] for factor in self.levels if factor in levels}


class Conditions:
    """Which factors exist where.

    Raises:
        ConfigError: a condition on what does not exist, or on what depends on the factor itself.
    """

    def __init__(self, spec: StudySpec, names: Names, file: str) -> None:
        self.needs: dict[str, dict[str, frozenset[str]]] = {}
        for factor, definition in spec.factors.items():
            conditions = {}
            for other, wanted in (definition.when or {}).items():
                key = f"factors.{factor}.when"
                names.known(other, key)
                values = wanted if isinstance(wanted, list) else [wanted]
                conditions[other] = frozenset(names.level(other, value, f"{key}.{other}") for value in values)
            self.needs[factor] = conditions
        self._order = sort({factor: set(needs) for factor, needs in self.needs.items()}, file)

    def applies(self, factor: str, levels: Mapping[str, str]) -> bool:
        """Whether the factor exists beside these levels, which hold all that it depends on."""
        return all(levels[other] in wanted for other, wanted in self.needs[factor].items())

    def reduce(self, levels: Levels) -> Levels:
        """The combination with ABSENT for factors that do not exist in it."""
        result = dict(levels)
        for factor in self._order:
            if not self.applies(factor, result):
                result[factor] = ABSENT
        return result

    def exclusive(self, one: str, other: str) -> bool:
        """Whether no arm has both factors."""
        first, second = self.needs[one], self.needs[other]
        return any(first[factor].isdisjoint(second[factor]) for factor in first.keys() & second.keys())


def sort(depends: Mapping[str, set[str]], file: str) -> Sequence[str]:
    """Names in an order in which each comes after those it depends on. Raises ConfigError for a cycle."""
    try:
        return tuple(TopologicalSorter(depends).static_order())
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        factor = min(cycle, key=list(depends).index).split("+")[0]
        raise ConfigError(
            f"a factor cannot depend on itself: {' -> '.join(cycle)}", file=file, key=f"factors.{factor}.when"
        ) from None  # fmt: skip
