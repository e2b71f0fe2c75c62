"""The next trials of a search, by Optuna: a function of the search and of the results so far, with no state of its own.

Each batch is asked of a study in memory that is told all earlier trials in the order of their numbers, with a sampler seeded for
this batch. So neither the order in which results arrive nor an interruption can change a trial. Answers are remembered on this
machine (`simlap.record.cache`): planning a study again need not import Optuna.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from simlap.record import cache
from simlap.study.search import Search, Space, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

DIGITS = 4
"""Significant digits of suggested numbers: the last bits may differ between machines, and ids must not."""


@dataclass(frozen=True)
class Told:
    """An earlier trial, over."""

    values: Values
    value: float | None
    """Of the metric; None where it failed."""


def suggest(search: Search, space: Space, told: Sequence[Told], n: int, *, mode: Literal["max", "min"]) -> list[Values]:
    """Values of the next n trials.

    Args:
        search: its sampler and seed.
        space: what is searched for.
        told: all trials before, in the order of their numbers.
        n: how many.
        mode: whether more or less of the metric is better.
    """
    remembered = cache.Cache("suggestions")
    question = {
        "optuna": metadata.version("optuna"),
        "sampler": search.sampler,
        "seed": search.seed,
        "mode": mode,
        "n": n,
        "space": {
            name: searched.model_dump(mode="json", include={"range", "levels"}) for name, searched in space.items()
        },
        "told": [(trial.values, trial.value) for trial in told],
    }
    key = json.dumps(question)
    if key not in remembered:
        remembered.put(key, _ask(search, space, told, n, mode))
    values: list[Values] = remembered[key]
    return values


def _ask(search: Search, space: Space, told: Sequence[Told], n: int, mode: str) -> list[Values]:
    import optuna  # takes a second or two

    distributions = _distributions(space)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                sampler=_sampler(search, len(told)),
                direction="maximize" if mode == "max" else "minimize",
            )
            for trial in told:
                failed = trial.value is None or not math.isfinite(trial.value)
                study.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                        params=trial.values,
                        distributions=distributions,
                        value=None if failed else trial.value,
                    )
                )
            asked = [study.ask(distributions).params for _ in range(n)]
    finally:
        optuna.logging.set_verbosity(level)
    return [_values(space, params) for params in asked]


def _sampler(search: Search, told: int) -> BaseSampler:
    """Seeded for what comes after so many trials. The first trials of all arms are drawn alike, which makes them comparable."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([search.seed, told]).generate_state(1)[0])
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    # several are asked before any of them is known: the liar keeps them apart
    return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, searched in space.items():
        numbers = searched.range
        if numbers is None:
            found[name] = CategoricalDistribution([*searched.named()])
        elif numbers.type == "int":
            found[name] = IntDistribution(int(numbers.low), int(numbers.high), log=numbers.scale == "log")
        else:
            found[name] = FloatDistribution(numbers.low, numbers.high, log=numbers.scale == "log")
    return found


def _values(space: Space, params: Mapping[str, float | int | str]) -> Values:
    values: Values = {}
    for name, searched in space.items():
        found = params[name]
        values[name] = str(found) if searched.range is None else searched.range.rounded(float(found), DIGITS)
    return values
