"""What became of a study's claims: holds, fails or undecided, with the numbers.

A claim `A < B by m` is held against H0: B - A <= m, by a one-sided paired t test; `A ~ B within m` against H0: they differ by m
or more, by two of them. p-values are adjusted by Holm's method over all claims of the file, those that cannot be judged yet
included. A claim *holds* where H0 is rejected; it *fails* where the opposite is shown in the same way; else it is *undecided*.
Only what is at its end is judged: an arm that a scheduler stopped was stopped by what would be tested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from simlap.config.claims import Claim, Grid, parse, sides
from simlap.errors import ConfigError
from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.compare import Comparison, baseline_of, compare, final_values, planned_cells
from simlap.report.inference import equivalence, exceeds
from simlap.report.race_claims import judge_by_race
from simlap.report.stats import holm
from simlap.report.words import amount, decimals_for, p_text, place, unit_of

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Judged:
    """A claim, and what became of it."""

    claim: str
    verdict: Verdict
    text: str
    """In a sentence, with the numbers or the reason."""
    upper: str = ""
    """The arm that is claimed to be above; of `~`, the left one."""
    lower: str = ""
    metric: str = ""
    at: str = ""
    """Where the two were compared."""
    n: int = 0
    difference: float | None = None
    """Mean of `upper` minus `lower`."""
    low: float | None = None
    high: float | None = None
    """Its 95 % interval, two-sided and not adjusted; a race's, where it is one."""
    margin: float = 0.0
    p_value: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class _Case:
    """A claim with its comparison, not judged yet."""

    claim: Claim
    comparison: Comparison
    p_for: float
    """Of H0: the claim is not true."""
    p_against: float
    """Of H0: the claim is true."""


def judge(study: StudyView, claims: Sequence[str] | None = None) -> list[Judged]:
    """One verdict for each claim (default: those that the study was last applied with)."""
    texts = study.claims if claims is None else claims
    found: list[Judged | _Case] = [_case(study, text) for text in texts]
    cases = [case for case in found if isinstance(case, _Case)]
    spare = [1.0] * (len(found) - len(cases))  # the family is the file's, however much of it can be judged
    p_for, p_against = (holm([getattr(case, key) for case in cases] + spare) for key in ("p_for", "p_against"))
    adjusted = iter(zip(p_for, p_against, strict=True))
    return [_judged(case, len(found), *next(adjusted)) if isinstance(case, _Case) else case for case in found]


def all_hold(judged: Sequence[Judged]) -> bool:
    return all(one.verdict == "holds" for one in judged)


def counts_text(judged: Sequence[Judged]) -> str:
    """`2 hold, 1 undecided`."""
    counts = Counter(one.verdict for one in judged)
    words = {"holds": "hold" if counts["holds"] != 1 else "holds", "fails": "fail" if counts["fails"] != 1 else "fails"}
    order: tuple[Verdict, ...] = ("holds", "fails", "undecided")
    return ", ".join(f"{counts[v]} {words.get(v, v)}" for v in order if counts[v])


def grid_of(study: StudyView) -> Grid | None:
    """The arms as claims speak of them; None where none is the baseline."""
    baseline = baseline_of(study)
    if baseline is None:
        return None
    return Grid({arm.name: arm.levels for arm in study.arms}, study.factors, baseline.name)


def _case(study: StudyView, text: str) -> Judged | _Case:
    grid = grid_of(study)
    if grid is None:
        return Judged(text, "undecided", "the study has no baseline")
    try:
        claim = parse(text)
        left, right = sides(claim, grid)
    except ConfigError as error:
        return Judged(text, "undecided", f"not in the study as it was last applied: {error}")
    upper, lower = (right, left) if claim.relation == "<" else (left, right)
    if study.scheduler == "race":
        return _raced(study, claim, upper, lower)
    arms = {arm.name: arm for arm in study.arms}
    comparison = compare(study, arms[upper], arms[lower])
    reason = _not_yet(study, [arms[upper], arms[lower]], comparison)
    test = comparison.paired
    if reason is None and (test is None or test.n < 2):
        reason = comparison.blocked or "with one seed there is no test"
    if reason is not None or test is None:
        told = Judged(claim.text, "undecided", str(reason), upper, lower, margin=claim.margin)
        return told if test is None else replace(told, difference=test.mean, n=test.n, at=place(comparison))
    d = test.differences
    against = [exceeds(d, claim.margin), exceeds([-x for x in d], claim.margin)]
    if claim.relation == "~":
        p_for = equivalence(d, claim.margin)
        p_against = min(1.0, 2 * min(p for p in against if p is not None))
    else:
        p_for = exceeds(d, claim.margin)
        opposite = exceeds([-x for x in d], -claim.margin)
        p_against = 1.0 if opposite is None else opposite
    assert p_for is not None  # there are two seeds or more
    return _Case(claim, comparison, p_for, p_against)


def _raced(study: StudyView, claim: Claim, upper: str, lower: str) -> Judged:
    found = judge_by_race(study, claim, upper, lower)
    said = Judged(claim.text, found.verdict, found.reason, upper, lower, study.metric, margin=claim.margin)
    if found.difference is None:
        return said
    text = f"{_difference(study.metric, upper, lower, found.difference, found.low, found.high)}: {found.reason}"
    at = f"{study.metric.split('/')[0]} @ epoch {study.epochs}"
    return replace(
        said, text=text, at=at, n=found.seeds, difference=found.difference, low=found.low, high=found.high,
        p_adjusted=found.p_adjusted,
    )  # fmt: skip


def _judged(case: _Case, family: int, p_for: float, p_against: float) -> Judged:
    claim, comparison, test = case.claim, case.comparison, case.comparison.paired
    assert test is not None
    verdict: Verdict = "undecided"
    if p_for < claim.threshold:
        verdict = "holds"
    elif p_against < claim.threshold:
        verdict = "fails"
    size = amount(unit_of(comparison.metric), claim.margin)
    what = f"by less than {size}" if claim.relation == "~" else f"by more than {size}" if claim.margin else "above"
    told = {
        "holds": f"{what}, {p_text(p_for)}" if claim.margin else p_text(p_for),
        "fails": f"not {what}, {p_text(p_against)}",
        "undecided": f"that it is {what} is not shown, {p_text(p_for)}, nor the opposite, {p_text(p_against)}",
    }[verdict]
    over = f", Holm over {family} claims" if family > 1 else ""
    basis = f"{place(comparison)}, paired over {test.n} seeds{over}"
    difference = _difference(comparison.metric, comparison.arm, comparison.reference, test.mean, test.low, test.high)
    text = f"{difference}: {told} ({basis})"
    if verdict == "undecided" and (more := _more_seeds(case, family)):
        text += f"; {more}"
    return Judged(
        claim.text, verdict, text, comparison.arm, comparison.reference, comparison.metric, place(comparison), test.n,
        test.mean, test.low, test.high, claim.margin, case.p_for, p_for,
    )  # fmt: skip


def _difference(metric: str, upper: str, lower: str, mean: float, low: float | None, high: float | None) -> str:
    """`filter=on is above filter=off by 7.1 ± 0.9 points`."""
    unit = unit_of(metric)
    half = (high - low) / 2 if low is not None and high is not None else None
    decimals = decimals_for(unit, half, mean)
    noise = "" if half is None else f" ± {unit.number(half, decimals)}"
    side = "below" if mean < 0 else "above"
    return f"{upper} is {side} {lower} by {unit.number(abs(mean), decimals)}{noise}{unit.suffix}"


def _more_seeds(case: _Case, family: int) -> str:
    """How many seeds would show the claim, if the difference is as it is now; empty where it does not point that way."""
    from simlap.study.power import seeds_needed

    claim, test = case.claim, case.comparison.paired
    assert test is not None
    room = claim.margin - abs(test.mean) if claim.relation == "~" else test.mean - claim.margin
    std = math.sqrt(sum((d - test.mean) ** 2 for d in test.differences) / (test.n - 1))
    if room <= 0 or std == 0:
        return "no number of seeds would show it, if the difference is as it is now" if room <= 0 else ""
    # one-sided: a two-sided test at twice the level
    level = min(0.5, 2 * claim.threshold)
    needed = seeds_needed(room, std, level, comparisons=family)
    if needed is None:
        return "10,000 seeds would not show it, if the difference is as it is now"
    if needed <= test.n:
        return ""
    return f"about {needed} seeds would show it (80 % power), if the difference is as it is now"


def _not_yet(study: StudyView, arms: Sequence[ArmView], comparison: Comparison) -> str | None:
    """Why two arms cannot be judged, in words; None where they can."""
    if comparison.declared and comparison.paired is not None:
        return None  # values at a declared epoch do not change any more
    for arm in arms:
        cells = planned_cells(study, arm)
        failed = [s for s, cell in zip(study.seeds_of(arm), cells, strict=True) if cell and cell.state == "failed"]
        if failed:
            return f"seed {failed[0]} of {arm.name} failed"
        if any(cell is not None and cell.state == "stopped" for cell in cells):
            return (
                f"{arm.name} was stopped early, by what would be tested here: put it under `protect`, or declare an epoch that "
                "all reach (`compare: {epoch: ...}`)"
            )
        left = sum(not _is_done(cell) for cell in cells)
        if left:
            return f"{arm.name} is not finished: {left} of {len(cells)} seeds are to come"
        if (
            study.compare == "common" and final_values(study, arm) is None
        ):  # else they were compared before one diverged
            return f"{arm.name} has no finite value of {study.report_metric} at the end for every planned seed"
    return None


def _is_done(cell: CellView | None) -> bool:
    return cell is not None and cell.state == "done"
