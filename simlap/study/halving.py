"""Ray's asynchronous successive halving without Ray: its rule, and a replay of it on curves that are already known."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from simlap.study.scheduling import Asha


class Rungs:
    """One bracket of ASHA as Ray Tune 2.60 decides it (`ray.tune.schedulers.async_hyperband`); more is better."""

    def __init__(self, asha: Asha, epochs: int) -> None:
        # as `simlap.study.schedule.ProtectedAsha`: max_t lies above the last epoch
        longest = max(epochs, asha.grace_epochs) + 1
        factor = asha.reduction_factor
        count = int(np.log(longest / asha.grace_epochs) / np.log(factor) + 1)
        self.share = (1 - 1 / factor) * 100 / 100
        self.recorded: dict[int, dict[Hashable, float]] = {asha.grace_epochs * factor**k: {} for k in range(count)}

    def report(self, cell: Hashable, epoch: int, value: float) -> bool:
        """Record a value at the highest rung that the cell has reached and not met. Returns whether the cell stops."""
        for milestone, recorded in reversed(self.recorded.items()):
            if epoch >= milestone and cell not in recorded:
                stop = bool(recorded) and value < self._cutoff(list(recorded.values()))
                recorded[cell] = value
                return stop
        return False

    def _cutoff(self, values: list[float]) -> float:
        """numpy's percentile with linear interpolation, twenty times as fast for a few values."""
        values.sort()
        place = (len(values) - 1) * self.share
        low = math.floor(place)
        if low + 1 >= len(values):
            return values[-1]
        part, step = place - low, values[low + 1] - values[low]
        return values[low] + step * part if part < 0.5 else values[low + 1] - step * (1 - part)


def replay_asha(
    asha: Asha,
    values: NDArray[np.float64],
    rungs: list[int],
    epochs: int,
    *,
    protected: frozenset[int],
    slots: int,
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Run cells seed by seed on `slots` devices whose speeds vary from cell to cell by about a fifth.

    Args:
        asha: its settings.
        values: [arm, seed, rung], more is better.
        rungs: epochs of the last axis of `values`, ascending; those below `epochs`.
        epochs: of a full run.
        protected: arms that are recorded at the rungs and never stopped.
        slots: cells that run at a time.
        random: for the speeds, and so for the order of arrival.

    Returns:
        [arm, seed], the epochs that each cell ran.
    """
    arms, seeds, _ = values.shape
    bracket = Rungs(asha, epochs)
    ran = np.full((arms, seeds), epochs)
    speed = random.lognormal(0.0, 0.2, (arms, seeds))
    milestones = [*rungs, epochs]
    waiting = [(arm, seed) for seed in range(seeds) for arm in range(arms)][::-1]
    running: list[tuple[float, int, int, int]] = []  # when it reaches its next rung, rung, seed, arm

    def start(now: float) -> None:
        if waiting:
            arm, seed = waiting.pop()
            heapq.heappush(running, (now + milestones[0] * speed[arm, seed], 0, seed, arm))

    for _ in range(slots):
        start(0.0)
    while running:
        now, rung, seed, arm = heapq.heappop(running)
        if rung == len(rungs):  # the last epoch
            start(now)
            continue
        if bracket.report((arm, seed), milestones[rung], float(values[arm, seed, rung])) and arm not in protected:
            ran[arm, seed] = milestones[rung]
            start(now)
            continue
        heapq.heappush(
            running, (now + (milestones[rung + 1] - milestones[rung]) * speed[arm, seed], rung + 1, seed, arm)
        )
    return ran
