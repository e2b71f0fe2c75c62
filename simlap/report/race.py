"""The report of a race: its verdicts, as its looks made them. Nothing is tested again.

An arm is compared over the seeds of the look that decided about it, on the metric of decisions, with the sequential p-value and
the repeated confidence interval of that look. The test metric stands beside it as it is, without a test: the arms that got many
seeds are those that were hard to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from simlap.record.view import ArmView, DecisionView, RaceView, StudyView
from simlap.report.compare import Comparison, values_at
from simlap.report.stats import Paired, estimate
from simlap.report.tables import ArmRow
from simlap.report.verdicts import FUTILE, verdict_text, verdict_word
from simlap.report.words import decimals_for, p_text, unit_of

Sign = Literal["better", "worse", "same", "open"]
_SIGNS: dict[str, Sign] = {
    "better": "better", "worse": "worse", "equivalent": "same", "futile": "open", "undecided": "open",
}  # fmt: skip


def race_comparisons(study: StudyView, race: RaceView) -> dict[str, Comparison]:
    """Every arm that was looked at with the one it was compared with; intervals and p-values are the race's."""
    arms = {arm.name: arm for arm in study.arms}
    return {
        name: _comparison(study, arms[name], decision, arms[decision.against])
        for name, decision in race.decisions.items()
        if decision.difference is not None and decision.against in arms and name in arms
    }


def _comparison(study: StudyView, arm: ArmView, decision: DecisionView, other: ArmView) -> Comparison:
    epoch = decision.epochs or study.epochs
    test = Paired(
        decision.seeds, decision.difference or 0.0, decision.low, decision.high, decision.p_value, decision.p_adjusted
    )
    x, y = (values_at(study, side, study.metric, epoch) for side in (arm, other))
    sides = [estimate(values[: decision.seeds]) if values else None for values in (x, y)]
    return Comparison(arm.name, other.name, study.metric, epoch, False, sides[0], sides[1], test)


def race_rows(study: StudyView, race: RaceView, rows: Sequence[ArmRow]) -> list[ArmRow]:
    """The rows of the table, with verdicts for states, and the seeds that were used of those planned."""
    found = []
    for row in rows:
        decision = race.decisions.get(row.arm)
        row = replace(row, planned=len(study.seeds))
        if decision is not None:
            against = f", to {decision.against}" if race.against == "best" and decision.against else ""
            row = replace(
                row,
                done=decision.seeds,
                state=_SIGNS[decision.verdict],
                status=verdict_word(decision),
                p=p_text(decision.p_adjusted, bare=True),
                at=f"{row.at}, {decision.seeds} seeds{against}" if row.at else "",
            )
        if race.against == "best" and row.is_baseline:
            row = replace(row, difference_text=_difference(study, row.comparison))
        found.append(row)
    return found


def _difference(study: StudyView, comparison: Comparison | None) -> str:
    if comparison is None or comparison.paired is None:
        return ""
    return " ".join(_numbers(study, comparison.paired))


def _numbers(study: StudyView, test: Paired) -> tuple[str, str]:
    """The difference and its interval, or an empty text."""
    unit = unit_of(study.metric)
    decimals = decimals_for(unit, test.half_width, test.mean)
    mean = unit.number(test.mean, decimals, sign=True)
    if test.low is None or test.high is None:
        return mean, ""
    return mean, f"[{unit.number(test.low, decimals, sign=True)}, {unit.number(test.high, decimals, sign=True)}]"


def race_sentence(study: StudyView, race: RaceView, arm: str) -> tuple[str, Sign, str] | None:
    """What was decided about an arm, in words; the sign of it; and the word of the verdict. None where it was not looked at."""
    decision = race.decisions.get(arm)
    if decision is None:
        return None
    seeds = f"{decision.seeds} of {len(study.seeds)} seeds"
    sign, word = _SIGNS[decision.verdict], verdict_word(decision)
    if decision.difference is None or decision.against is None:
        return f"{arm}: {verdict_text(decision)}, {seeds} ({decision.reason.removeprefix('race: ')}).", sign, word
    other, unit = decision.against, unit_of(study.metric)
    mean, interval = _numbers(study, Paired(decision.seeds, decision.difference, decision.low, decision.high))
    what = {
        "better": f"is better than {other}",
        "worse": f"is worse than {other}",
        "equivalent": f"is equivalent to {other}: differences below {_margin(study, race)} do not matter",
        "futile": f"{FUTILE} against {other}",
        "undecided": f"is {verdict_text(decision)} against {other}",
    }[decision.verdict]
    shown = f"{mean}{unit.suffix}" + (f" {interval}" if interval else "")
    p = f", {p_text(decision.p_adjusted)}" if decision.p_adjusted is not None else ""
    epoch = f" at epoch {decision.epochs}" if decision.epochs is not None else ""
    why = f": {decision.why}" if decision.why else ""
    return f"{arm} {what} ({shown}{p}; {seeds}{epoch}{why}).", sign, word


def _margin(study: StudyView, race: RaceView) -> str:
    unit = unit_of(study.metric)
    return f"{(race.margin or 0.0) * unit.scale:g}{unit.suffix}"


def race_summary(race: RaceView) -> dict[str, Any]:
    """The decisions for machines."""
    return {
        "against": race.against,
        "alpha": race.alpha,
        "margin": race.margin,
        "over": race.over,
        "arms": {name: vars(decision) for name, decision in race.decisions.items()},
    }
