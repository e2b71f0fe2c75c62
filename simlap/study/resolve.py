"""From levels to experiments. What arms share is validated once, so that thousands of arms load in a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from simlap.config import Experiment, override
from simlap.config.load import overlap
from simlap.config.schema import Resources
from simlap.errors import ConfigError
from simlap.study.levels import ABSENT, Levels, arm_name

Change = tuple[str, JsonValue]
"""Dotted path, value."""
RESOURCES = "resources"
_WRONG = object()


class Resolver:
    """Resolves combinations of levels over a base experiment.

    A node of the config (`method`, `method.gate`, ...) is a function of the levels of the factors inside it: it is made when
    these levels are met first, from its parts where no factor is at the node itself. What must agree between parts is validated
    wherever they meet. The result equals `override` with all changes, and so does the error.
    """

    def __init__(
        self, paths: Mapping[str, str], values: Mapping[str, Mapping[str, JsonValue]], base: Experiment,
        resources: Resources | None, file: Path,
    ) -> None:  # fmt: skip
        """
        Args:
            paths: dotted path by factor.
            values: value by level by factor.
            base: what the levels change.
            resources: of all stages, if the study has them.
            file: of the study, which experiment files are relative to.
        """
        self._paths, self._values, self._base, self._resources, self._file = paths, values, base, resources, file
        self._known: dict[tuple[Any, ...], Any] = {}
        self._depths = {factor: depth for factor, path in paths.items() if (depth := _resources_at(path)) is not None}
        """How many stages before the last one a factor changes the resources of."""

    def __call__(self, levels: Levels) -> Experiment:
        """The experiment of one combination. Raises ConfigError, naming one factor's level where that is wrong by itself."""
        present = {factor: level for factor, level in levels.items() if level != ABSENT}
        experiment = self._node("", self._base, present)
        if experiment is _WRONG:
            experiment = self._whole(present)
        own = frozenset(depth for factor, depth in self._depths.items() if factor in present)
        return with_resources(experiment, self._resources, own)

    def _node(self, prefix: str, node: Any, levels: Levels) -> Any:
        """The part of the experiment below `prefix`, which the base has as `node`, with these levels of the factors inside it;
        _WRONG where something is wrong: `_whole` says what."""
        key = (prefix, *levels.items())
        if key not in self._known:
            inside = {factor: self._paths[factor].removeprefix(prefix).split(".")[0] for factor in levels}
            alone = len(levels) == 1 or not isinstance(node, BaseModel)
            if prefix and (alone or any(len(place(self._paths[factor])) < len(prefix) for factor in levels)):
                self._known[key] = self._fetch(prefix, levels)
            else:
                self._known[key] = self._composed(prefix, node, levels, inside)
        return self._known[key]

    def _composed(self, prefix: str, node: BaseModel, levels: Levels, inside: Mapping[str, str]) -> Any:
        """The node with its fields resolved one by one. `inside`: the field by factor."""
        fields = dict(node)
        for name in dict.fromkeys(inside.values()):
            if name not in fields:
                return _WRONG
            chosen = {factor: level for factor, level in levels.items() if inside[factor] == name}
            fields[name] = self._node(f"{prefix}{name}.", fields[name], chosen)
            if fields[name] is _WRONG:
                return _WRONG
        try:
            return type(node).model_validate(fields)
        except ValidationError:
            return _WRONG

    def _fetch(self, prefix: str, levels: Levels) -> Any:
        """What lies below `prefix` after these changes to the base alone."""
        try:
            found: Any = self._override(levels, "")
        except ConfigError:  # perhaps right beside other levels
            return _WRONG
        for name in prefix.rstrip(".").split("."):
            found = getattr(found, name)
        return found

    def _whole(self, levels: Levels) -> Experiment:
        """Where a factor lies inside another one, the higher one is applied first."""
        try:
            return self._override(levels, f"arm {arm_name(levels)}")
        except ConfigError:
            # where one level is wrong by itself, the error names it and not the combination
            for factor in sorted(levels, key=lambda factor: place(self._paths[factor]).count(".")):
                above = [other for other in levels if _is_above(self._paths[other], self._paths[factor])]
                self._override(
                    {name: levels[name] for name in (*above, factor)}, f"factors.{factor}.levels.{levels[factor]}"
                )
            raise

    def _override(self, levels: Levels, where: str) -> Experiment:
        changes: list[Change] = [(self._paths[factor], self._values[factor][level]) for factor, level in levels.items()]
        return override(self._base, changes, file=str(self._file), where=where, folder=self._file.parent)


def with_resources(
    experiment: Experiment, resources: Resources | None, own: frozenset[int] = frozenset()
) -> Experiment:
    """The experiment, and its earlier stages, with the study's resources where it has some.

    Args:
        experiment: the last stage.
        resources: of the study.
        own: stages that keep what a factor gave them: 0 is the last one, 1 its `pretrain`, and so on.
    """
    if resources is None:
        return experiment
    before = frozenset(depth - 1 for depth in own)
    pretrain = experiment.pretrain and with_resources(experiment.pretrain, resources, before)
    kept = experiment.resources if 0 in own else resources
    return experiment.model_copy(update={"resources": kept, "pretrain": pretrain})


def _resources_at(path: str) -> int | None:
    """Which stage's resources a path changes, counted back from the last one; None where it changes something else."""
    keys = path.split(".")
    depth = next((i for i, key in enumerate(keys) if key != "pretrain"), len(keys))
    return depth if keys[depth : depth + 1] == [RESOURCES] else None


def place(path: str) -> str:
    """What a value at `path` replaces: a changed `kind` or `source` replaces the whole node."""
    above, _, last = path.rpartition(".")
    return above if last in ("kind", "source") else path


def _is_above(path: str, other: str) -> bool:
    """Whether a change at `path` replaces a node that `other` lies in."""
    return overlap(place(path), other) and len(place(path)) < len(place(other))
