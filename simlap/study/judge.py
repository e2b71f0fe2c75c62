"""The verdicts of one look of a race, once its comparisons are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from simlap.study.boundary import sequential_p
from simlap.study.paired import Pair
from simlap.study.standing import Decision, Names, Verdict

if TYPE_CHECKING:
    from simlap.study.race import Replay


class Judge:
    """The verdicts of one look, once its comparisons are known."""

    def __init__(self, race_: Replay, number: int, size: int, rung: int | None, pairs: Mapping[Names, Pair]) -> None:
        self.race, self.rules, self.number, self.rung, self.pairs = race_, race_.rules, number, rung, pairs
        self.last = race_.sizes[-1]
        self.when = f"{size} seeds, look {number + 1} of {len(race_.sizes)}"
        if rung is not None:
            self.when = f"epoch {rung} of {size} seeds"
        self.variance = 1 / size - 1 / self.last
        if rung is not None:
            # a rung is a hint about the difference at the end and no part of it: at least half of the seeds count as open
            self.variance = max(self.variance, 1 / self.last)

    def all(self, arms: list[str]) -> Iterator[Decision]:
        """One decision of each arm."""
        if self.rung is None and self.race.reference is None:
            yield from self._against_best(arms)
            return
        for arm in arms:
            mine = [pair for pair in self.pairs if arm in pair]
            if self.rung is None and (decided := self._decided(arm, mine[0])) is not None:
                yield decided
            else:
                yield self._open(arm, mine)

    def _decided(self, arm: str, pair: Names) -> Decision | None:
        """Equivalent, better or worse, where the comparison says so."""
        if pair in self.race.alike:
            also = "; the difference is not 0, but does not matter" if pair in self.race.different else ""
            return self._decision(arm, pair, "equivalent", f"within the margin of {self.rules.margin:g}{also}")
        if pair in self.race.different:
            return self._decision(arm, pair, "better" if self._lead(arm, pair) > 0 else "worse")
        return None

    def _lead(self, arm: str, pair: Names) -> float:
        return self.pairs[pair].mean if arm == pair[0] else -self.pairs[pair].mean

    def _against_best(self, arms: list[str]) -> Iterator[Decision]:
        """An arm that any other beats is worse. Of the others, those equivalent to the leader leave with it or before it."""
        worse: dict[str, Names] = {}
        for arm in arms:
            beaten = [p for p in self.pairs if arm in p and p in self.race.different and self._lead(arm, p) < 0]
            if beaten := [p for p in beaten if p not in self.race.alike]:
                worse[arm] = min(beaten, key=lambda pair: (self._lead(arm, pair), pair))
        left = [arm for arm in arms if arm not in worse]
        leader = self._leader(left)
        alike = {
            arm: pair for arm in left if (pair := self._pair_of(arm, leader)) in self.race.alike and arm != leader
        }  # fmt: skip
        open_ = [arm for arm in left if arm not in alike and arm != leader]
        for arm in arms:
            if arm in worse:
                yield self._decision(arm, worse[arm], "worse")
            elif arm in alike:
                yield self._decision(arm, alike[arm], "equivalent", f"within the margin of {self.rules.margin:g}")
            elif arm != leader or open_:
                yield self._open(arm, [p for p in self.pairs if arm in p and set(p) <= {*open_, leader}])
            else:
                yield self._winner(arm, worse, alike)

    def _leader(self, arms: list[str]) -> str:
        """The arm with the highest mean, the first by name of several; every other one's lead over it is at most 0."""
        leader = arms[0] if arms else ""
        for arm in arms[1:]:
            if self._lead(arm, self._pair_of(arm, leader)) > 0:
                leader = arm
        return leader

    def _pair_of(self, one: str, other: str) -> Names:
        return (one, other) if one < other else (other, one)

    def _winner(self, arm: str, worse: Mapping[str, Names], alike: Mapping[str, Names]) -> Decision:
        """The last one that is racing, with nobody left to be compared with."""
        earlier = {name: decision.verdict for name, decision in self.race.standing.verdicts.items()}
        verdicts = {**earlier, **dict.fromkeys(worse, "worse"), **dict.fromkeys(alike, "equivalent")}
        others = set(self.race.entrants.epochs) - {arm}
        if all(verdicts.get(other) == "worse" for other in others):
            return Decision(arm, "better", f"race: better than all others after {self.when}", leaves=True)
        unlike = sorted(other for other in others if verdicts.get(other) not in ("worse", "equivalent"))
        if unlike:
            text = (
                f"race: nobody is left to compare with after {self.when}, and not decided against {', '.join(unlike)}"
            )
            return Decision(arm, "undecided", text, leaves=True)
        same = ", ".join(sorted(other for other in others if verdicts[other] == "equivalent"))
        return Decision(arm, "equivalent", f"race: leads after {self.when}, equivalent: {same}", leaves=True)

    def _open(self, arm: str, mine: list[Names]) -> Decision:
        """Not decided: futile where the seeds that are left decide none of the comparisons, else it goes on if it can."""
        if not mine:
            leaves = self.rung is None
            return Decision(arm, "undecided", f"race: nobody to compare with after {self.when}", leaves=leaves)
        chances = {pair: self._chance(self.pairs[pair]) for pair in mine}
        pair = max(sorted(mine), key=chances.__getitem__)
        chance = chances[pair]
        if self.rung is None and self.number == len(self.race.sizes) - 1:
            return self._decision(arm, pair, "undecided", "no seeds are left", leaves=True)
        if chance < self.rules.futility:
            text = f"{self.last} seeds would decide it with probability {chance:.3f} < {self.rules.futility:g}"
            return self._decision(arm, pair, "futile", text)
        return self._decision(
            arm, pair, "undecided", f"{self.last} seeds decide it with probability {chance:.2f}", leaves=False
        )

    def _chance(self, pair: Pair) -> float:
        """Predictive probability that the last look finds a difference, or equivalence where that is the likelier one."""
        last = len(self.race.sizes) - 1
        level = self.race.level(last, min(len(self.race.different), len(self.race.family) - 1))
        chance = 1 - pair.chance_within(pair.half_width(level, self.last), self.variance)
        if self.rules.margin is not None:
            level = self.race.level(last, min(len(self.race.alike), len(self.race.family) - 1))
            room = self.rules.margin - pair.half_width(level, self.last)
            chance = max(chance, pair.chance_within(room, self.variance))
        return chance

    def _decision(self, arm: str, pair: Names, verdict: Verdict, why: str = "", *, leaves: bool = True) -> Decision:
        value, other = self.pairs[pair], pair[1] if arm == pair[0] else pair[0]
        difference = self.race.sign * self._lead(arm, pair)
        if self.rung is not None:
            text = f"race: {difference:+.4g} against {other} after {self.when}: {why}"
            return Decision(arm, verdict, text, other, difference, leaves=leaves, why=why)
        comparisons = len(self.race.family) - len(self.race.different)
        level = self.race.different.get(pair) if verdict != "equivalent" else self.race.alike[pair]
        if level is None:
            level = self.race.level(self.number, min(len(self.race.different), len(self.race.family) - 1))
        adjusted = self.race.adjusted.get(pair)
        if adjusted is None and leaves:
            p = comparisons * sequential_p(tuple(self.race.history[pair]), self.race.sizes, self.rules.spending)
            adjusted = min(1.0, max(p, self.rules.alpha))
        half = value.half_width(level)
        sign = "<" if value.p < level else ">="
        text = (
            f"race: {difference:+.4g} +- {half:.2g} against {other} after {self.when}: p {value.p:.3g} {sign} {level:.3g}"
            + (f"; {why}" if why else "")
        )  # fmt: skip
        low, high = difference - half, difference + half
        return Decision(arm, verdict, text, other, difference, low, high, value.p, level, adjusted, leaves, why)
