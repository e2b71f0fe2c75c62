"""What a scheduler would do: many simulated or replayed studies, each through the scheduler itself.

How often is the best arm found, at which share of the epochs, how often is an equal arm called different, how often is a
different one noticed. `race` runs the very engine of `simlap/study/race.py`, `asha` the rule of `simlap/study/halving.py`,
`none` runs everything and tests by Holm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simlap.study.curves import Curves
from simlap.study.halving import replay_asha
from simlap.study.paired import Pair
from simlap.study.race import Cell, Entrants, race
from simlap.study.scheduling import Asha, NoScheduler, Race

Values = NDArray[np.float64]
ALPHA = 0.05
"""Family-wise level of the tests at the end where the scheduler has none of its own."""


@dataclass(frozen=True)
class Draw:
    """One study: what its cells would measure if all ran to the end."""

    values: Values
    """[arm, seed, epoch], more is better; the baseline first."""
    truth: Values
    """[arm], the true values by which arms are ranked; more is better."""


class Source(Protocol):
    """Where studies come from."""

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of the last axis of `Draw.values`."""

    def draw(self, seeds: int, random: np.random.Generator, *, null: bool) -> Draw:
        """One study of so many seeds. `null`: all arms are equal."""


@dataclass(frozen=True)
class Synthetic:
    """Normal seed effects and learning curves: the baseline, and arms with given true differences to it."""

    effects: tuple[float, ...]
    """[arm], true values at the end in the metric's units; the baseline first."""
    std: float
    """Standard deviation of the paired differences at the end."""
    epochs: tuple[int, ...]
    """Epochs at which the metric is measured; the last one is the end."""

    def draw(self, seeds: int, random: np.random.Generator, *, null: bool) -> Draw:
        """Effects grow with the curve; noise at share t of the epochs has correlation sqrt(t) with that at the end."""
        effects = np.zeros(len(self.effects)) if null else np.array(self.effects)
        share = np.array(self.epochs) / self.epochs[-1]
        growth = (1 - np.exp(-3 * share)) / (1 - np.exp(-3))
        shape = (len(effects), seeds)
        at_end = random.standard_normal((*shape, 1))
        along = random.standard_normal((*shape, len(share)))
        noise = np.sqrt(share) * at_end + np.sqrt(1 - share) * along
        of_seed = random.standard_normal((1, seeds, 1))  # cancels in paired differences
        mean = growth * (effects[:, None, None] + 10 * self.std)
        return Draw(mean + self.std * (of_seed + noise / np.sqrt(2)), effects)


class Replay:
    """Recorded curves, with seeds drawn with replacement for each study; the arms of a seed stay together."""

    def __init__(self, curves: Curves) -> None:
        first = curves.arms.index(curves.baseline)
        self.order = [first, *(i for i in range(len(curves.arms)) if i != first)]
        self.epochs = curves.epochs
        sign = 1.0 if curves.mode == "max" else -1.0
        self._values: Values = sign * curves.values[self.order]
        self._truth: Values = curves.truth()[self.order]

    def draw(self, seeds: int, random: np.random.Generator, *, null: bool) -> Draw:
        """`null`: the curves of each seed are dealt to the arms at random, so that no arm differs from another."""
        arms, recorded, _ = self._values.shape
        chosen = random.integers(recorded, size=seeds)
        values = self._values[:, chosen]
        if null:
            dealt = random.permuted(np.tile(np.arange(arms)[:, None], (1, seeds)), axis=0)
            return Draw(np.take_along_axis(values, dealt[:, :, None], axis=0), np.zeros(arms))
        return Draw(values, self._truth)


@dataclass(frozen=True)
class Played:
    """What a scheduler made of one study."""

    share: float
    """Epochs run, of those of all cells."""
    chosen: int
    """The arm that one would go on with."""
    called: Values | None
    """[arm]: 1 called better, -1 called worse, 0 neither; None where the scheduler tests nothing."""
    seeds: float
    """Cells that ran to the last epoch, per arm."""


@dataclass(frozen=True)
class Settings:
    """How studies are simulated."""

    replicates: int = 1000
    seeds: int = 5
    """Planned seeds of each study."""
    slots: int = 4
    """Cells that run at a time (asha)."""
    tolerance: float = 0.0
    """An arm this close to the best one counts as found, one this close to the baseline as no different."""
    seed: int = 0
    """Of the random numbers; replicate i has draws of its own."""
    protected: frozenset[int] = frozenset({0})
    """Arms that asha never stops, and to which race, but for the baseline, gives all seeds."""


@dataclass(frozen=True)
class Result:
    """Shares over all replicates."""

    scheduler: str
    replicates: int
    epochs: float
    """Mean share of the epochs of all cells."""
    found: float
    """How often the arm that one would go on with is within the tolerance of the best."""
    seeds: float
    """Mean number of seeds per arm that ran to the end."""
    false_difference: float | None
    """How often any arm is called different where all are equal; None where the scheduler calls nothing."""
    power: float | None
    """Share of the truly different arms that are called so, in the right direction; None where there is none."""
    null_epochs: float
    """Mean share of the epochs where all arms are equal."""

    def error(self, share: float) -> float:
        """Binomial standard error of one of the shares."""
        return float(np.sqrt(share * (1 - share) / self.replicates))


def simulate(source: Source, scheduler: NoScheduler | Asha | Race, settings: Settings) -> Result:
    """Put `settings.replicates` studies through a scheduler, and as many in which all arms are equal.

    The source has to have values at the scheduler's rungs. Raises ValueError.
    """
    last = source.epochs[-1]
    if absent := [rung for rung in scheduler.rungs(last) if rung not in source.epochs]:
        raise ValueError(
            f"{scheduler.kind} decides at epochs {absent}, and the curves have values at {list(source.epochs)}"
        )
    shares, found, seeds, false, null_shares = [], [], [], [], []
    right, different = 0, 0
    for draw, random in _draws(source, settings, null=False):
        played = _play(scheduler, draw, source.epochs, settings, random)
        shares.append(played.share)
        seeds.append(played.seeds)
        found.append(draw.truth[played.chosen] >= draw.truth.max() - settings.tolerance)
        if played.called is not None:
            truth = _direction(scheduler, draw.truth, settings.tolerance)
            different += int((truth != 0).sum())
            right += int(((truth != 0) & (played.called == truth)).sum())
    for draw, random in _draws(source, settings, null=True):
        played = _play(scheduler, draw, source.epochs, settings, random)
        null_shares.append(played.share)
        if played.called is not None:
            false.append(bool(played.called.any()))
    return Result(
        scheduler=scheduler.kind,
        replicates=settings.replicates,
        epochs=float(np.mean(shares)),
        found=float(np.mean(found)),
        seeds=float(np.mean(seeds)),
        false_difference=float(np.mean(false)) if false else None,
        power=right / different if different else None,
        null_epochs=float(np.mean(null_shares)),
    )


def _draws(source: Source, settings: Settings, *, null: bool) -> Iterator[tuple[Draw, np.random.Generator]]:
    for replicate in range(settings.replicates):
        random = np.random.default_rng((settings.seed, int(null), replicate))
        yield source.draw(settings.seeds, random, null=null), random


def _direction(scheduler: NoScheduler | Asha | Race, truth: Values, tolerance: float) -> Values:
    """What ought to be called: 1 better, -1 worse. Against `best`, worse is what is beaten."""
    if isinstance(scheduler, Race) and scheduler.against == "best":
        return np.where(truth < truth.max() - tolerance, -1.0, 0.0)
    difference = truth - truth[0]
    return np.where(np.abs(difference) > tolerance, np.sign(difference), 0.0)


def _play(
    scheduler: NoScheduler | Asha | Race,
    draw: Draw,
    epochs: tuple[int, ...],
    settings: Settings,
    random: np.random.Generator,
) -> Played:
    match scheduler:
        case Race():
            return _play_race(scheduler, draw, epochs, settings.protected)
        case Asha():
            return _play_asha(scheduler, draw, epochs, settings, random)
        case NoScheduler():
            ends = draw.values[:, :, -1]
            return Played(1.0, int(ends.mean(axis=1).argmax()), _holm(ends), float(ends.shape[1]))


def _holm(ends: Values) -> Values:
    """Paired t tests of every arm with the baseline over all seeds, by Holm's method."""
    called = np.zeros(len(ends))
    pairs = {arm: Pair.of(ends[arm].tolist(), ends[0].tolist()) for arm in range(1, len(ends))}
    for rank, arm in enumerate(sorted(pairs, key=lambda arm: pairs[arm].p)):
        if pairs[arm].p >= ALPHA / (len(pairs) - rank):
            break
        called[arm] = np.sign(pairs[arm].mean)
    return called


def _play_asha(
    asha: Asha, draw: Draw, epochs: tuple[int, ...], settings: Settings, random: np.random.Generator
) -> Played:
    rungs = asha.rungs(epochs[-1])
    columns = [epochs.index(rung) for rung in rungs]
    ran = replay_asha(
        asha, draw.values[:, :, columns], rungs, epochs[-1],
        protected=settings.protected, slots=settings.slots, random=random,
    )  # fmt: skip
    done = (ran == epochs[-1]).sum(axis=1)
    # the highest mean over the seeds that ran to the end
    ends = np.where(ran == epochs[-1], draw.values[:, :, -1], 0.0).sum(axis=1)
    means = np.divide(ends, done, out=np.full(len(ends), -np.inf), where=done > 0)
    return Played(float(ran.mean()) / epochs[-1], int(means.argmax()), None, float(done.mean()))


def _play_race(rules: Race, draw: Draw, epochs: tuple[int, ...], protected: frozenset[int]) -> Played:
    arms, seeds, _ = draw.values.shape
    last = epochs[-1]
    names = [f"{arm:06d}" for arm in range(arms)]
    wanted = [*rules.rungs(last), last]
    columns = [epochs.index(epoch) for epoch in wanted]
    cells: Mapping[str, Mapping[int, Cell]] = {
        name: {
            seed: Cell(last, dict(zip(wanted, curve, strict=True)))
            for seed, curve in enumerate(draw.values[arm][:, columns].tolist())
        }
        for arm, name in enumerate(names)
    }
    # the baseline is there for the others: it has as many seeds as they need
    kept = frozenset(names[arm] for arm in protected if arm != 0)
    entrants = Entrants(dict.fromkeys(names, last), names[0], tuple(range(seeds)), protected=kept)
    standing = race(rules, entrants, cells)
    signs = {"better": 1.0, "worse": -1.0}
    called = np.array([signs.get(standing.verdicts[n].verdict, 0.0) if n in standing.verdicts else 0.0 for n in names])
    ran = np.array([[standing.asked.get((name, seed), 0) for seed in range(seeds)] for name in names])
    done = (ran == last).sum(axis=1)
    # the highest mean difference to the baseline over the seeds that an arm has, among arms that are not worse
    ends = draw.values[:, :, -1]
    lead = [
        float((ends[arm, : done[arm]] - ends[0, : done[arm]]).mean()) if done[arm] and called[arm] >= 0 else -np.inf
        for arm in range(arms)
    ]
    return Played(float(ran.mean()) / last, int(np.argmax(lead)), called, float(done.mean()))
