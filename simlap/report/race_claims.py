"""Claims about a race, judged by its own decisions: seeds were added by what would be tested, so nothing is tested anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scipy import special

from simlap.config.claims import Claim
from simlap.record.view import DecisionView, RaceView, StudyView


@dataclass(frozen=True)
class RaceVerdict:
    """What a race says about a claim."""

    verdict: Literal["holds", "fails", "undecided"]
    reason: str
    difference: float | None = None
    """Upper minus lower, at the look that decided."""
    low: float | None = None
    high: float | None = None
    p_adjusted: float | None = None
    seeds: int = 0


def judge_by_race(study: StudyView, claim: Claim, upper: str, lower: str) -> RaceVerdict:
    """What the race has decided about the two arms, as far as that answers the claim."""
    race = study.race
    if race is None:
        return RaceVerdict("undecided", "the race has not begun")
    decision, sign = _about(race, upper, lower)
    if decision is None or decision.difference is None:
        return RaceVerdict("undecided", _silent(race, upper, lower))
    low, high = _wide(study, race, decision)
    if low is not None and high is not None and sign < 0:
        low, high = -high, -low
    difference = sign * decision.difference
    verdict, reason = _verdict(race, claim, decision, difference, low, high)
    return RaceVerdict(verdict, reason, difference, low, high, decision.p_adjusted, decision.seeds)


def _verdict(
    race: RaceView, claim: Claim, decision: DecisionView, difference: float, low: float | None, high: float | None
) -> tuple[Literal["holds", "fails", "undecided"], str]:
    margin = claim.margin
    if not decision.leaves:
        return "undecided", "the race goes on"
    if decision.verdict in ("futile", "undecided"):
        return "undecided", "the planned seeds do not decide it"
    if race.alpha > claim.threshold:
        return "undecided", f"the race decides at alpha {race.alpha:g}, and the claim asks for p < {claim.threshold:g}"
    told = f"the race found a difference over {decision.seeds} seeds (alpha {race.alpha:g} over all looks and arms)"
    if decision.verdict == "equivalent":
        alike = f"the race found them equivalent within {race.margin:g} (alpha {race.alpha:g})"
        if claim.relation == "~" and race.margin is not None and race.margin <= margin:
            return "holds", alike
        if claim.relation != "~" and race.margin is not None and race.margin <= margin:
            return "fails", alike
        return "undecided", f"{alike}, which does not tell {margin:g}"
    if claim.relation == "~":
        if low is not None and high is not None and (low > margin or high < -margin):
            return "fails", f"{told}, of more than {margin:g}"
        return "undecided", f"{told}, and not whether it lies within {margin:g}: a race with a margin does"
    if difference < 0:
        return "fails", f"{told}, the other way round"
    if margin == 0 or (low is not None and low > margin):
        return "holds", told if margin == 0 else f"{told}, of more than {margin:g}"
    if high is not None and high < margin:
        return "fails", f"{told}, of less than {margin:g}"
    return "undecided", f"{told}, and its interval does not tell whether it is more than {margin:g}"


def _about(race: RaceView, upper: str, lower: str) -> tuple[DecisionView | None, int]:
    """The decision in which the two were compared, and 1 where it is about the upper one, -1 where about the lower."""
    for arm, other, sign in ((upper, lower, 1), (lower, upper, -1)):
        decision = race.decisions.get(arm)
        if decision is not None and decision.against == other:
            return decision, sign
    return None, 1


def _silent(race: RaceView, upper: str, lower: str) -> str:
    if race.against == "baseline" and {upper, lower} <= race.decisions.keys():
        return "the race compares arms with the baseline only, and these two not with each other"
    return "the race has not decided about these two" if race.over else "the race has not decided about these two yet"


def _wide(study: StudyView, race: RaceView, decision: DecisionView) -> tuple[float | None, float | None]:
    """An interval that holds over all looks and arms for differences other than 0, too.

    The race's own steps down as it rejects differences of 0 (Holm), which says nothing of other differences. Its level divided by
    the number of comparisons is that of Bonferroni's method, or less.
    """
    if decision.low is None or decision.high is None or not decision.level or decision.difference is None:
        return None, None
    arms = len(study.arms)
    comparisons = max(1, arms - 1 if race.against == "baseline" else arms * (arms - 1) // 2)
    t = [
        -float(special.stdtrit(decision.seeds - 1, level / 2))
        for level in (decision.level / comparisons, decision.level)
    ]
    half = (decision.high - decision.low) / 2 * t[0] / t[1]
    return decision.difference - half, decision.difference + half
