"""What a launch is asked for besides the study file."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from simlap.errors import ConfigError
from simlap.study.spec import Study


@dataclass(frozen=True)
class Options:
    """What a launch is asked for besides the study file."""

    only: tuple[str, ...] = ()
    """Arms that have all these levels, `factor=level` with shell wildcards; empty: all arms."""
    retry_failed: bool = False
    """Run failed cells again, from their last checkpoint."""
    rerun_stale: bool = False
    """Discard what other code computed, and run it anew."""
    seeds: int | None = None
    """At least so many seeds."""


def with_seeds(study: Study, seeds: int | None) -> Study:
    """The study with at least so many seeds: those of the file, then the smallest numbers that are not among them."""
    given = study.spec.seed_list()
    if seeds is None or seeds <= len(given):
        return study
    spare = (number for number in range(seeds + len(given)) if number not in given)
    more = [*given, *(next(spare) for _ in range(seeds - len(given)))]
    return replace(study, spec=study.spec.model_copy(update={"seeds": more}))


def chosen_arms(study: Study, patterns: Sequence[str]) -> set[int]:
    """The ids of the arms that match all patterns (of one factor: any)."""
    asked: dict[str, list[str]] = {}
    for pattern in (part for text in patterns for part in text.split()):
        factor, equals, level = pattern.partition("=")
        if not equals:
            raise ConfigError("is written factor=level", file="command line", key="--only", value=pattern)
        if factor not in study.spec.factors:
            choices = list(study.spec.factors)
            raise ConfigError("no such factor", file="command line", key="--only", value=factor, choices=choices)
        levels = list(dict.fromkeys(arm.levels[factor] for arm in study.arms if factor in arm.levels))
        if not fnmatch.filter(levels, level):
            key = f"--only {factor}"
            raise ConfigError("no arm has such a level", file="command line", key=key, value=level, choices=levels)
        asked.setdefault(factor, []).append(level)
    chosen = {
        id(arm)
        for arm in study.arms
        if all(any(fnmatch.fnmatchcase(arm.levels.get(f, ""), one) for one in any_of) for f, any_of in asked.items())
    }
    if not chosen:
        raise ConfigError(
            "no arm has all these levels", file="command line", key="--only", value=" ".join(patterns),
            choices=[arm.name for arm in study.arms[:20]],
        )  # fmt: skip
    return chosen
