"""Which of many arms are drawn: a plot of hundreds shows nothing, and makes a page heavy. Tables hold them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simlap.record.view import ArmView, StudyView
from simlap.report.compare import Comparison, Effect, common_epochs, values_at

MAX_CURVES = 24
"""Arms with a curve; there are not many more colours and dashes that can be told apart."""
MAX_INTERVALS = 24
"""Rows of a plot of intervals."""
MAX_POINTS = 200
"""Arms in a plot of points."""


def curve_arms(study: StudyView, metric: str | None = None) -> list[ArmView]:
    """All, or the baseline and those that came furthest, the best of them first; in the order of the study."""
    if len(study.arms) <= MAX_CURVES:
        return list(study.arms)
    metric = metric or study.metric
    sign = 1.0 if study.more_is_better(metric) else -1.0

    def standing(arm: ArmView) -> tuple[bool, int, float]:
        epochs = common_epochs(study, [arm], metric)
        values = values_at(study, arm, metric, epochs[-1]) if epochs else None
        if values is None:
            return arm.is_baseline, 0, 0.0
        return arm.is_baseline, epochs[-1], sign * sum(values) / len(values)

    best = sorted(study.arms, key=standing, reverse=True)[:MAX_CURVES]
    kept = {arm.name for arm in best}
    return [arm for arm in study.arms if arm.name in kept]


def forest_rows(study: StudyView, comparisons: Mapping[str, Comparison]) -> tuple[list[Comparison], int]:
    """Those that can be drawn, in the order of the study, and how many there are. Of many, three quarters are the best ones."""
    known = [c for arm in study.arms if (c := comparisons.get(arm.name)) is not None and c.paired is not None]
    if len(known) <= MAX_INTERVALS:
        return known, len(known)
    ordered = sorted(known, key=lambda c: _gain(study, c), reverse=True)
    best = 3 * MAX_INTERVALS // 4
    kept = {c.arm for c in (*ordered[:best], *ordered[best - MAX_INTERVALS :])}
    return [c for c in known if c.arm in kept], len(known)


def effect_rows(study: StudyView, effects: Sequence[Effect]) -> tuple[list[Effect], int]:
    """As `forest_rows`, but of many effects the largest, either way."""
    known = [effect for effect in effects if effect.comparison.paired is not None]
    if len(known) <= MAX_INTERVALS:
        return known, len(known)
    largest = sorted(range(len(known)), key=lambda i: abs(_gain(study, known[i].comparison)), reverse=True)
    kept = sorted(largest[:MAX_INTERVALS])
    return [known[i] for i in kept], len(known)


def _gain(study: StudyView, comparison: Comparison) -> float:
    assert comparison.paired is not None
    return comparison.paired.mean if study.more_is_better(comparison.metric) else -comparison.paired.mean
