"""ASHA without Ray decides as Ray's."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from simlap.study.halving import Rungs, replay_asha
from simlap.study.scheduling import Asha

NO_CONTROLLER: Any = None


@pytest.mark.parametrize(("grace", "factor", "epochs"), [(1, 3, 9), (2, 2, 16), (5, 3, 50), (1, 4, 81), (7, 3, 5)])
@pytest.mark.parametrize("digits", [1, 17])
def test_same_arrivals_same_decisions(grace: int, factor: int, epochs: int, digits: int) -> None:
    """Cells report in a random order; values of one digit tie at cutoffs."""
    asha = Asha(kind="asha", grace_epochs=grace, reduction_factor=factor)
    longest = max(epochs, grace) + 1
    rays = AsyncHyperBandScheduler(
        time_attr="epoch", metric="m", mode="max", max_t=longest, grace_period=grace, reduction_factor=factor
    )
    ours, generator = Rungs(asha, epochs), random.Random(7)
    trials: list[Any] = [SimpleNamespace(trial_id=str(i)) for i in range(60)]
    for trial in trials:
        rays.on_trial_add(NO_CONTROLLER, trial)
    reached = dict.fromkeys(range(60), 0)
    stops = 0
    while reached:
        cell = generator.choice(list(reached))
        reached[cell] += 1
        value = round(generator.random(), digits)
        decision = rays.on_trial_result(NO_CONTROLLER, trials[cell], {"epoch": reached[cell], "m": value})
        stopped = ours.report(cell, reached[cell], value)
        assert stopped == (decision == TrialScheduler.STOP), (cell, reached[cell], value)
        stops += stopped
        if stopped or reached[cell] == epochs:
            del reached[cell]
    assert (stops > 0) == (grace <= epochs)
    assert list(reversed(ours.recorded)) == [milestone for milestone, _ in rays._brackets[0]._rungs]


def values(arms: int = 4, seeds: int = 3) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(arms, dtype=np.float64)[:, None, None] * np.ones((arms, seeds, 2))


def play(slots: int, protected: frozenset[int] = frozenset(), seed: int = 0) -> Any:
    asha = Asha(kind="asha", grace_epochs=1, reduction_factor=3)
    generator = np.random.default_rng(seed)
    return replay_asha(asha, values(), [1, 3], 9, protected=protected, slots=slots, random=generator)


def test_one_at_a_time_is_the_order_of_the_plan() -> None:
    """Worst arm first: the first cell meets nobody at its rungs and ends; ever better ones follow it; then only the best pass."""
    ran = play(slots=1)
    assert ran[:, 0].tolist() == [9, 9, 9, 9]
    assert ran[3].tolist() == [9, 9, 9]
    assert ran[0, 1:].tolist() == [1, 1]


def test_protected_cells_run_to_the_end() -> None:
    ran = play(slots=1, protected=frozenset({0}))
    assert ran[0].tolist() == [9, 9, 9]


def test_more_slots_change_the_order_of_arrival() -> None:
    assert (play(slots=12, seed=1) != play(slots=1, seed=1)).any()
    assert (play(slots=4, seed=2) == play(slots=4, seed=2)).all()
