"""The fair comparison of two arms, and the simple effects of every factor.

Two arms are compared at the highest epoch that all planned seeds of both reached. Surviving seeds alone are never averaged.
If every planned seed of both is done, that is the end, and the final (test) metric is compared. Otherwise it is the decision
(validation) metric at the highest common epoch, both sides at that epoch. A study file may declare another rule (`compare`): at
the end only, at an epoch, or by every run's best value so far.
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
    declared: bool = False
    """The study file says where to compare, so that it does not depend on how far runs came."""
    best: bool = False
    """Of every run the best value up to `epoch`, not the one at it."""


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


def best_values(study: StudyView, arm: ArmView, metric: str, epoch: int) -> list[float] | None:
    """The best `metric` of every planned seed up to `epoch`, or None where one has none."""
    better = max if study.mode == "max" else min
    found: list[float] = []
    for cell in planned_cells(study, arm):
        rows = cell.rows if cell is not None else []
        values = [row.metrics[metric] for row in rows if row.epoch <= epoch and finite(row.metrics.get(metric))]
        if not values:
            return None
        found.append(better(values))
    return found or None


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
    rule, both = study.compare, (arm, reference)

    def made(
        epoch: int | None, x: list[float] | None, y: list[float] | None, *, final: bool = False
    ) -> Comparison:  # fmt: skip
        metric = study.report_metric if final else study.metric
        best, declared = rule == "best_so_far", rule not in ("common", "best_so_far")
        if x is None or y is None or epoch is None:
            why = _blocked(study, both, epoch if declared and not final else None)
            return Comparison(arm.name, reference.name, metric, None, final, blocked=why, declared=declared, best=best)
        return Comparison(
            arm.name, reference.name, metric, epoch, final, estimate(x), estimate(y), paired(x, y), None, declared, best
        )  # fmt: skip

    if rule in ("common", "last"):
        x, y = final_values(study, arm), final_values(study, reference)
        if rule == "last" or (x is not None and y is not None):
            return made(study.epochs, x, y, final=True)
    if isinstance(rule, int):
        return made(rule, *(values_at(study, side, study.metric, rule) for side in both))
    epochs = common_epochs(study, both, study.metric)
    if not epochs:
        return made(None, None, None)
    values = best_values if rule == "best_so_far" else values_at
    return made(epochs[-1], *(values(study, side, study.metric, epochs[-1]) for side in both))


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


def _blocked(study: StudyView, arms: Sequence[ArmView], epoch: int | None) -> str:
    """Why two arms have no epoch in common, or not the one that is asked for, in words."""
    for arm in arms:
        for seed, cell in zip(study.seeds_of(arm), planned_cells(study, arm), strict=True):
            if cell is None or not cell.rows:
                state = {"failed": "failed before its first epoch", "stopped": "was stopped before its first epoch"}
                what = state.get(cell.state if cell else "new", "has not finished an epoch yet")
                return f"seed {seed} of {arm.name} {what}"
            if not any(finite(row.metrics.get(study.metric)) for row in cell.rows):
                return f"seed {seed} of {arm.name} has no value of {study.metric}"
            if epoch is not None and not finite(cell.metric_at(study.metric, epoch)):
                what = "has not reached" if cell.epoch < epoch else f"has no value of {study.metric} at"
                return f"seed {seed} of {arm.name} {what} epoch {epoch}"
            if study.compare == "last" and cell.state != "done":
                return f"seed {seed} of {arm.name} is not at its end"
    if study.compare == "last":
        return f"there is no value of {study.report_metric} for all planned seeds of both"
    return f"there is no epoch at which {study.metric} was measured for all planned seeds of both"
