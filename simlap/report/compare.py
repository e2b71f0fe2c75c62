"""The fair comparison of two arms, and the simple effects of every factor.

Two arms are compared at the highest epoch that all planned seeds of both reached. Surviving seeds alone are never averaged.
If every planned seed of both is done, that is the end, and the final (test) metric is compared. Otherwise it is the decision
(validation) metric at the highest common epoch, both sides at that epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.stats import Estimate, Paired, estimate, finite, holm, paired


@dataclass(frozen=True)
class Comparison:
    """An arm against a reference arm: both sides at the same epoch, over the same seeds."""

    arm: str
    reference: str
    metric: str
    epoch: int | None
    """Epoch at which both sides are taken; None where they cannot be compared."""
    final: bool
    """Every planned seed of both is done, and `metric` is the report metric."""
    values: Estimate | None = None
    reference_values: Estimate | None = None
    paired: Paired | None = None
    blocked: str | None = None
    """Why there is nothing to compare."""


@dataclass(frozen=True)
class Effect:
    """What one level of a factor does against the baseline's level, all else held equal."""

    factor: str
    level: str
    reference_level: str
    at: dict[str, str]
    """Levels of the other factors, the same on both sides."""
    comparison: Comparison


def baseline_of(study: StudyView) -> ArmView | None:
    return next((arm for arm in study.arms if arm.is_baseline), None)


def planned_cells(study: StudyView, arm: ArmView) -> list[CellView | None]:
    """The arm's cell of every planned seed (`StudyView.seeds_of`), in their order; None where it does not exist yet."""
    by_seed = {cell.seed: cell for cell in arm.cells}
    return [by_seed.get(seed) for seed in study.seeds_of(arm)]


def final_values(study: StudyView, arm: ArmView) -> list[float] | None:
    """The report metric of every planned seed, or None unless every one is done and has a finite value."""
    values: list[float] = []
    for cell in planned_cells(study, arm):
        value = cell.result.get(study.report_metric) if cell is not None and cell.state == "done" else None
        if value is None or not finite(value):
            return None
        values.append(value)
    return values or None


def values_at(study: StudyView, arm: ArmView, metric: str, epoch: int) -> list[float] | None:
    """`metric` of every planned seed at `epoch`, or None where one is missing or not finite."""
    values: list[float] = []
    for cell in planned_cells(study, arm):
        value = cell.metric_at(metric, epoch) if cell is not None else None
        if value is None or not finite(value):
            return None
        values.append(value)
    return values or None


def common_epochs(study: StudyView, arms: Sequence[ArmView], metric: str) -> list[int]:
    """Epochs at which all planned seeds of all `arms` have a finite `metric`, ascending."""
    common: set[int] | None = None
    for arm in arms:
        for cell in planned_cells(study, arm):
            rows = cell.rows if cell is not None else []
            here = {row.epoch for row in rows if finite(row.metrics.get(metric))}
            common = here if common is None else common & here
    return sorted(common or ())


def compare(study: StudyView, arm: ArmView, reference: ArmView) -> Comparison:
    """`arm` minus `reference`, paired by seed, by the rule at the top of this file."""
    x, y = final_values(study, arm), final_values(study, reference)
    metric, epoch, final = study.report_metric, study.epochs, True
    if x is None or y is None:
        metric, final = study.metric, False
        epochs = common_epochs(study, [arm, reference], metric)
        if not epochs:
            return Comparison(arm.name, reference.name, metric, None, False, blocked=_blocked(study, [arm, reference]))
        epoch = epochs[-1]
        x, y = values_at(study, arm, metric, epoch), values_at(study, reference, metric, epoch)
        assert x is not None  # `common_epochs` found them
        assert y is not None
    return Comparison(arm.name, reference.name, metric, epoch, final, estimate(x), estimate(y), paired(x, y))


def compare_to_baseline(study: StudyView) -> dict[str, Comparison]:
    """Every other arm against the baseline, by arm name; p-values Holm-adjusted over these arms."""
    baseline = baseline_of(study)
    if baseline is None:
        return {}
    found = [compare(study, arm, baseline) for arm in study.arms if arm is not baseline]
    return {comparison.arm: comparison for comparison in _adjust(found)}


def simple_effects(study: StudyView) -> list[Effect]:
    """Each level against the baseline's level at each combination of the other factors for which both arms exist.

    p-values are Holm-adjusted over all effects of the study.
    """
    baseline = baseline_of(study)
    effects: list[Effect] = []
    reference = {
        factor: baseline.levels[factor] if baseline and baseline.levels.get(factor) in levels else levels[0]
        for factor, levels in study.factors.items()
        if levels
    }
    for factor, levels in study.factors.items():
        for level in levels:
            for arm in study.arms:
                if level == reference[factor] or arm.levels.get(factor) != level:
                    continue
                other = _counterpart(study, arm, factor, reference)
                if other is not None:
                    # a factor that exists on one side only, or on neither, is no common ground
                    at = {
                        name: value
                        for name, value in arm.levels.items()
                        if name != factor and value == other.levels[name] and value in study.factors[name]
                    }
                    effects.append(Effect(factor, level, reference[factor], at, compare(study, arm, other)))
    adjusted = _adjust([effect.comparison for effect in effects])
    return [replace(effect, comparison=comparison) for effect, comparison in zip(effects, adjusted, strict=True)]


def _counterpart(study: StudyView, arm: ArmView, factor: str, reference: dict[str, str]) -> ArmView | None:
    """The arm with the reference level of a factor, all else equal. A factor that exists on one side only (a condition, `when`)
    has its reference level there."""

    def equal(name: str, one: str, other: str) -> bool:
        exists = [level in study.factors.get(name, ()) for level in (one, other)]
        return one == other or (exists[0] != exists[1] and reference[name] in (one, other))

    for other in study.arms:
        if other.levels.get(factor) == reference[factor] and all(
            equal(name, level, other.levels[name]) for name, level in arm.levels.items() if name != factor
        ):
            return other
    return None


def _adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in the adjusted p-values of one family; comparisons without a p-value do not count towards it."""
    p_values = [c.paired.p_value if c.paired is not None else None for c in comparisons]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [
        comparison
        if comparison.paired is None or p is None
        else replace(comparison, paired=replace(comparison.paired, p_adjusted=next(adjusted)))
        for comparison, p in zip(comparisons, p_values, strict=True)
    ]


def _blocked(study: StudyView, arms: Sequence[ArmView]) -> str:
    """Why two arms have no epoch in common, in words."""
    for arm in arms:
        for seed, cell in zip(study.seeds_of(arm), planned_cells(study, arm), strict=True):
            if cell is None or not cell.rows:
                state = {"failed": "failed before its first epoch", "stopped": "was stopped before its first epoch"}
                what = state.get(cell.state if cell else "new", "has not finished an epoch yet")
                return f"seed {seed} of {arm.name} {what}"
            if not any(finite(row.metrics.get(study.metric)) for row in cell.rows):
                return f"seed {seed} of {arm.name} has no value of {study.metric}"
    return f"there is no epoch at which {study.metric} was measured for all planned seeds of both"
