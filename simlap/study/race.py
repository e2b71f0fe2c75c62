"""The race: which arms are decided, and which cells have to run before the next look.

`race` is a function of the values of complete looks. Nothing else goes in (no order of arrival, no clock, no state), so a
resumed study replays to the decisions it had, and arms in another order or on more devices meet the same ones.

- A look takes the first n planned seeds of every undecided arm, all of them or none: survivors are never compared.
- At the last epoch, paired t tests are held against the boundaries of `simlap/study/boundary.py`. Over arms, alpha is divided by
  Holm's method for group-sequential tests (Maurer & Bretz 2013): alpha / m for each of m comparisons that are not yet rejected,
  so that a decided arm hands its share on. Against `best` the family is all pairs of arms.
- Equivalence has an alpha of its own, divided in the same way: the interval at the look's level lies within the margin
  (two one-sided tests by repeated confidence intervals, Jennison & Turnbull 1989).
- Futility is non-binding: nothing above relies on it. An arm is given up when the predictive probability (Spiegelhalter,
  Freedman & Blackburn 1986) that the remaining seeds decide it is small. At rungs it is the only thing that is looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

from simlap.study.boundary import nominal_levels, sequential_p, spent
from simlap.study.judge import Judge
from simlap.study.paired import Pair
from simlap.study.scheduling import Race
from simlap.study.standing import Cell, Decision, Entrants, Look, Names, Need, Standing, Verdict

__all__ = ["Cell", "Decision", "Entrants", "Look", "Need", "Standing", "Verdict", "race"]

_NEW = Cell()


class Replay:
    """The replay of one race. Arms are kept by name, so that their order cannot matter."""

    def __init__(self, rules: Race, entrants: Entrants, cells: Mapping[str, Mapping[int, Cell]]) -> None:
        self.rules, self.entrants = rules, entrants
        nothing: Mapping[int, Cell] = {}
        self.lanes = {
            arm: [(seed, cells.get(arm, nothing).get(seed, _NEW)) for seed in entrants.seeds] for arm in entrants.epochs
        }
        self.asked: dict[tuple[str, int | None], int] = {}
        """Of how many seeds the values at a rung were asked for, by arm and rung."""
        self.values: dict[tuple[str, int | None], list[float]] = {}
        """Finite values of the first seeds, by arm and rung; more is better."""
        self.sign = 1.0 if entrants.mode == "max" else -1.0
        self.sizes = rules.looks(len(entrants.seeds))
        names = sorted(entrants.epochs)
        self.reference = entrants.baseline if rules.against == "baseline" else None
        self.racing = [name for name in names if name != self.reference]
        self.family: list[Names] = (
            list(itertools.combinations(names, 2))
            if self.reference is None
            else [(n, self.reference) for n in self.racing]
        )
        self.history: dict[Names, list[float]] = {pair: [] for pair in self.family}
        self.different: dict[Names, float] = {}
        """Comparisons that are rejected, with the level at which they were."""
        self.alike: dict[Names, float] = {}
        """Comparisons that are equivalent, with the level at which they were found to be."""
        self.adjusted: dict[Names, float] = {}
        self.standing = Standing([], {}, [], {})

    def run(self) -> Standing:
        for number, size in enumerate(self.sizes):
            for rung in (*self.rules.futility_epochs, None):
                if not self.racing:
                    break
                if rung is not None and all(rung >= self.entrants.epochs[arm] for arm in self._present()):
                    continue
                if self._wait(self._present(), size, rung):
                    return self.standing
                self._look(number, size, rung)
        self._wait(sorted(self.entrants.protected), len(self.entrants.seeds), None)
        return self.standing

    def _present(self) -> list[str]:
        return self.racing if self.reference is None else [self.reference, *self.racing]

    def _wait(self, arms: Iterable[str], size: int, rung: int | None) -> bool:
        """Ask for the first `size` seeds of `arms` up to the rung. Returns whether any of them is still to run."""
        for arm in arms:
            target = self._target(arm, rung)
            for seed, cell in self.lanes[arm][self.asked.get((arm, rung), 0) : size]:
                self.standing.asked[arm, seed] = max(target, self.standing.asked.get((arm, seed), 0))
                if cell.failed is None and cell.reached < target:
                    self.standing.needed.append(Need(arm, seed, target))
            self.asked[arm, rung] = size
        return bool(self.standing.needed)

    def _target(self, arm: str, rung: int | None) -> int:
        epochs = self.entrants.epochs[arm]
        return epochs if rung is None else min(rung, epochs)

    def _fault(self, arm: str, size: int, rung: int | None) -> str | None:
        """Why an arm cannot be compared at this look."""
        target, values = self._target(arm, rung), self.values.setdefault((arm, rung), [])
        for seed, cell in self.lanes[arm][len(values) : size]:
            value = cell.values.get(target)
            if cell.reached < target:
                return f"seed {seed} of {arm} failed: {cell.failed}"
            if value is None or not math.isfinite(value):
                return f"seed {seed} of {arm} has {'no value' if value is None else value} at epoch {target}"
            values.append(self.sign * value)
        return None

    def level(self, number: int, rejected: int) -> float:
        """Nominal level of a look when so many comparisons are rejected."""
        return nominal_levels(self.sizes, self.rules.alpha / (len(self.family) - rejected), self.rules.spending)[number]

    def _look(self, number: int, size: int, rung: int | None) -> None:
        final = rung is None
        full = number + 1 if final else number
        done = spent(self.rules.alpha, self.sizes[full - 1] / self.sizes[-1], self.rules.spending) if full else 0.0
        comparisons = len(self.family) - len(self.different)
        faults = {arm: fault for arm in self._present() if (fault := self._fault(arm, size, rung))}
        if self.reference in faults:
            faults = dict.fromkeys(self.racing, faults[self.reference])
        fine = [arm for arm in self._present() if arm not in faults]
        pairs = {pair: self._pair(pair, size, rung) for pair in self.family if set(pair) <= set(fine)}
        judge = Judge(self, number, size, rung, pairs)
        if final:
            for pair, value in pairs.items():
                self.history[pair].append(value.p)
            self._reject(number, pairs)
        left = [arm for arm in self.racing if arm not in faults]
        found = {decision.arm: decision for decision in judge.all(left)}
        for arm, fault in faults.items():
            if arm in self.racing:
                where = "cannot be compared" if final else f"not looked at after epoch {rung}"
                found[arm] = Decision(arm, "undecided", f"race: {where}: {fault}", leaves=final)
        decisions = tuple(found[arm] for arm in self.racing)
        self.standing.looks.append(Look(size, rung, done, comparisons, decisions))
        self.standing.verdicts.update((decision.arm, decision) for decision in decisions if decision.leaves)
        self.racing = [arm for arm in self.racing if arm not in self.standing.verdicts]

    def _pair(self, pair: Names, size: int, rung: int | None) -> Pair:
        x, y = (self.values[arm, rung][:size] for arm in pair)
        return Pair.of(x, y)

    def _reject(self, number: int, pairs: Mapping[Names, Pair]) -> None:
        """Holm's steps at this look, for differences and for equivalence."""
        while (comparisons := len(self.family) - len(self.different)) > 0:
            level = self.level(number, len(self.different))
            found = [pair for pair in pairs if pair not in self.different and pairs[pair].p < level]
            if not found:
                break
            for pair in sorted(found, key=lambda pair: (pairs[pair].p, pair)):
                p = comparisons * sequential_p(tuple(self.history[pair]), self.sizes, self.rules.spending)
                before = max(self.adjusted.values(), default=0.0)  # adjusted p-values ascend in the order of rejection
                self.adjusted[pair] = max(before, min(p, self.rules.alpha))
                self.different[pair] = level
        while self.rules.margin is not None and len(self.alike) < len(self.family):
            level = self.level(number, len(self.alike))
            found = [
                pair
                for pair, value in pairs.items()
                if pair not in self.alike and abs(value.mean) + value.half_width(level) < self.rules.margin
            ]
            if not found:
                break
            self.alike.update(dict.fromkeys(found, level))


def race(rules: Race, entrants: Entrants, cells: Mapping[str, Mapping[int, Cell]]) -> Standing:
    """Replay all looks that are complete.

    Args:
        rules: of the study file.
        entrants: arms, seeds and epochs.
        cells: what is known by arm and seed; what is not there has not started. More than was asked for does no harm: values of
            other seeds and epochs are not looked at.

    Raises:
        ValueError: fewer planned seeds than the first look takes, or a baseline that does not race.
    """
    if entrants.baseline not in entrants.epochs:
        raise ValueError(f"the baseline {entrants.baseline} is not among the arms")
    return Replay(rules, entrants, cells).run()
