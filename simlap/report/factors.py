"""What each factor does over the whole study: main effects, interactions (statsmodels), importance of sampled ones (Optuna).

Seeds are blocks: every arm runs with the same ones, so what a seed does to all arms alike is taken out. Where every arm has
every seed, that is an analysis of variance with seeds as a factor of their own, whose F tests are exact for normal residuals.
Where cells are missing, it is a mixed model with a random intercept for each seed, whose Wald tests are approximate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

Method = Literal["anova", "mixed"]
MAX_COLUMNS = 250
"""Of a model, as 0/1 columns; a larger one takes minutes, and says little by factor."""
MIN_IMPORTANCE_ARMS = 20
"""Fewer tried points say nothing about importance: the best tenth of them would be one."""


@dataclass(frozen=True)
class Measured:
    """One run's value, with the levels of its arm."""

    seed: int
    levels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Term:
    """A main effect, or an interaction of two factors."""

    factors: tuple[str, ...]
    df: int
    statistic: float
    """F (`anova`), or Wald's chi-squared (`mixed`)."""
    p_value: float
    share: float | None
    """Partial eta squared: of the variation that neither seeds nor other terms explain; None for a mixed model."""

    @property
    def name(self) -> str:
        return " × ".join(self.factors)


@dataclass(frozen=True)
class FactorTests:
    """All terms of one model."""

    method: Method
    terms: list[Term]
    residual_df: int | None
    """Of the F tests; None for a mixed model."""


def factor_tests(rows: Sequence[Measured], factors: Sequence[str]) -> FactorTests | None:
    """Main effects, and the interactions of two factors where the design tells them apart.

    None where the design cannot tell the main effects apart, or has nothing left to measure noise by, as in values without any.

    Args:
        rows: one for each arm and seed, as far as they are known.
        factors: those that vary.
    """
    # the last digits of a fit depend on the order of its rows, and the study file's is no fact
    rows = sorted(rows, key=lambda row: (row.seed, sorted(row.levels.items())))
    factors = [factor for factor in factors if len({row.levels[factor] for row in rows}) > 1]
    seeds, values = {row.seed for row in rows}, np.array([row.value for row in rows])
    if not factors or len(seeds) < 2 or float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max()):
        return None  # of values that are all the same, an F would be one of their rounding
    arms = {tuple(row.levels[factor] for factor in factors) for row in rows}
    complete = len(rows) == len(arms) * len(seeds)
    data = _columns(rows, factors)
    names = [f"C(f{i}, Sum)" for i in range(len(factors))]
    main = " + ".join(names)
    both = f"({main}) ** 2"
    degrees = [len({row.levels[factor] for row in rows}) - 1 for factor in factors]
    columns = {main: sum(degrees), both: sum(degrees) + sum(a * b for a, b in combinations(degrees, 2))}
    for terms in [both, main] if len(factors) > 1 else [main]:
        if len(seeds) + columns[terms] > MAX_COLUMNS:
            continue
        if complete:
            if (found := _anova(data, terms, factors)) is not None:
                return found
        elif terms == main:
            return _mixed(data, terms, factors)
    return None


def anova(data: Mapping[str, Sequence[Any]], formula: str) -> Any:
    """statsmodels' table of an analysis of variance (type II); None where a column depends on others, or nothing is left over."""
    import pandas as pd
    from statsmodels.regression.linear_model import OLS  # `statsmodels.formula.api` loads every other model, too
    from statsmodels.stats.anova import anova_lm

    model = OLS.from_formula(formula, pd.DataFrame(dict(data)))
    if np.linalg.matrix_rank(model.exog) < model.exog.shape[1] or model.df_resid < 1:
        return None
    return anova_lm(model.fit(), typ=2)


def mixed(data: Mapping[str, Sequence[Any]], formula: str, groups: str) -> Any:
    """statsmodels' fit (REML) of a model with a random intercept for each group.

    None where a column depends on others, nothing is left over, or the errors of the fit cannot be had.
    """
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    frame = pd.DataFrame(dict(data))
    model = MixedLM.from_formula(formula, frame, groups=frame[groups])
    rows, columns = model.exog.shape
    if rows <= columns or np.linalg.matrix_rank(model.exog) < columns:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of seeds near 0 is on the boundary, and the fit stands
        try:
            fit = model.fit(reml=True)
        except np.linalg.LinAlgError:
            return None
    return fit if np.isfinite(fit.bse_fe).all() else None


def _anova(data: Mapping[str, Sequence[Any]], terms: str, factors: Sequence[str]) -> FactorTests | None:
    table = anova(data, f"value ~ C(seed) + {terms}")
    if table is None:
        return None
    rest = table.loc["Residual"]
    found = [
        Term(
            _factors_in(str(name), factors), int(row["df"]), float(row["F"]), float(row["PR(>F)"]),
            float(row["sum_sq"] / (row["sum_sq"] + rest["sum_sq"])) if row["sum_sq"] + rest["sum_sq"] > 0 else None,
        )
        for name, row in table.iterrows()
        if name not in ("C(seed)", "Residual")
    ]  # fmt: skip
    # values without any noise have no F
    return FactorTests("anova", [t for t in found if math.isfinite(t.statistic)], int(rest["df"]))


def _mixed(data: Mapping[str, Sequence[Any]], terms: str, factors: Sequence[str]) -> FactorTests | None:
    fit = mixed(data, f"value ~ {terms}", "seed")
    if fit is None:
        return None
    table = fit.wald_test_terms(scalar=True).summary_frame()
    found = [
        Term(_factors_in(str(name), factors), int(row["df constraint"]), float(row["chi2"]), float(row["P>chi2"]), None)
        for name, row in table.iterrows()
        if str(name).startswith("C(f")
    ]
    return FactorTests("mixed", [t for t in found if math.isfinite(t.statistic)], None) if found else None


def _columns(rows: Sequence[Measured], factors: Sequence[str]) -> dict[str, list[Any]]:
    """Factors as f0, f1, ...: their names need not be names in a formula."""
    return {
        "value": [row.value for row in rows],
        "seed": [f"s{row.seed}" for row in rows],
        **{f"f{i}": [row.levels[factor] for row in rows] for i, factor in enumerate(factors)},
    }


def _factors_in(term: str, factors: Sequence[str]) -> tuple[str, ...]:
    return tuple(factors[int(part.removeprefix("C(f").split(",")[0])] for part in term.split(":"))


def importance(
    points: Sequence[Mapping[str, float]],
    values: Sequence[float],
    *,
    mode: Literal["max", "min"],
    log: Sequence[str] = (),
) -> dict[str, float] | None:
    """Share of each sampled factor in what tells the best tenth of the points from all (PED-ANOVA, Watanabe et al. 2023).

    None with fewer than `MIN_IMPORTANCE_ARMS` points.

    Args:
        points: the factors' values of each arm.
        values: its mean of the metric.
        mode: whether more or less is better.
        log: factors that were sampled on a logarithmic scale.
    """
    if len(points) < MIN_IMPORTANCE_ARMS:
        return None
    import optuna

    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(
            min(p[name] for p in points), max(p[name] for p in points), log=name in log
        )
        for name in points[0]
        if len({point[name] for point in points}) > 1
    }
    if not ranges:
        return None
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        for point, value in sorted(zip(points, values, strict=True), key=lambda pair: sorted(pair[0].items())):
            params = {name: point[name] for name in ranges}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(share) for name, share in found.items()}
