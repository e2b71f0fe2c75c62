"""The tables of `simlap.report.detail`, for every rendering, and the same for machines."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from simlap.record.view import StudyView
from simlap.report.detail import ArmDetail, Details, Interval
from simlap.report.inference import BCA_COVERAGE, SIGN_FLIP_SEEDS
from simlap.report.stats import ALPHA
from simlap.report.text_table import TextTable, filled
from simlap.report.words import Unit, amount, decimals_for, metric_title, p_text, unit_of

ARMS, FACTORS, IMPORTANCE = "Beside the t test", "Main effects and interactions", "Importance of sampled factors"


def detail_tables(study: StudyView, found: Details) -> list[TextTable]:
    """Those that have something to say."""
    tables = [_arms(study, found), _factors(study, found), _importance(found)]
    return [table for table in tables if table is not None]


def summary_details(study: StudyView, found: Details) -> dict[str, Any]:
    """For machines: under `details`."""
    arms = {
        one.arm: {
            key: value
            for key, value in {
                "bca": one.mean_bca,
                "difference_bca": one.difference_bca,
                "effect_size": one.effect_size,
                "p_sign_flip": one.sign_flip,
                "p_equivalence": one.equivalence,
                "more_seeds": one.more_seeds,
                "rank": one.rank,
            }.items()
            if value is not None
        }
        for one in found.arms
    }
    result: dict[str, Any] = {"metric": found.metric, "epoch": found.epoch, "arms": arms}
    if found.pairs:
        result["pairs"] = [
            {
                "arm": pair.arm, "reference": pair.reference, "difference": pair.test.mean, "ci_low": pair.test.low,
                "ci_high": pair.test.high, "p_value": pair.test.p_value, "p_adjusted": pair.test.p_adjusted,
            }
            for pair in found.pairs
        ]  # fmt: skip
    if found.factors is not None:
        terms = [
            {"term": [*t.factors], "df": t.df, "statistic": t.statistic, "p_value": t.p_value, "share": t.share}
            for t in found.factors.terms
        ]
        result["factors"] = {"method": found.factors.method, "residual_df": found.factors.residual_df, "terms": terms}
    if found.importance is not None:
        result["importance"] = found.importance
    return result


def _arms(study: StudyView, found: Details) -> TextTable | None:
    unit = unit_of(found.metric)
    rows = [
        [
            one.arm,
            "" if one.rank is None else str(one.rank),
            _interval(unit, one.mean_bca),
            _interval(unit, one.difference_bca, sign=True),
            "" if one.effect_size is None else f"{one.effect_size:+.1f}",
            p_text(one.sign_flip, bare=True),
            p_text(one.equivalence, bare=True),
            "" if one.more_seeds is None else f"+{one.more_seeds}",
        ]
        for one in found.arms
    ]
    points = " (points)" if unit.percent else ""
    head = [
        "Arm", "Rank", "BCa", f"BCa of the difference{points}", "g", "p sign flips", "p equivalent", "Seeds needed",
    ]  # fmt: skip
    return filled(ARMS, head, rows, _caption(study, found))


def _caption(study: StudyView, found: Details) -> str:
    """Only what there is in the table is explained."""
    has = {key.name: any(getattr(one, key.name) is not None for one in found.arms) for key in fields(ArmDetail)}
    seeds = len(study.seeds)
    known = min(BCA_COVERAGE, key=lambda n: abs(n - seeds))
    parts = []
    if has["rank"]:
        parts.append(
            f"Rank: 1 + how many arms are better in {metric_title(found.metric)} (every two arms, Holm-adjusted); arms that "
            "cannot be told apart share a rank."
        )
    if has["mean_bca"] or has["difference_bca"]:
        about = "" if known == seeds else f" (simulated for {known})"
        parts.append(
            f"BCa: 95% bootstrap interval; with {seeds} seeds{about} it covers in about {BCA_COVERAGE[known]}% of studies only, "
            "the t interval in 95%."
        )
    if has["effect_size"]:
        parts.append("g: difference to the baseline in standard deviations of the differences (Hedges).")
    if has["sign_flip"]:
        parts.append(f"Sign flips: permutation test, from {SIGN_FLIP_SEEDS} seeds on, Holm-adjusted over the arms.")
    if has["equivalence"] and study.margin is not None:
        margin = amount(unit_of(study.report_metric), study.margin)
        parts.append(
            f"Equivalent: p of a difference of {margin} or more (two one-sided t tests, Holm-adjusted); below {ALPHA:.2g} the "
            "arm is equivalent to the baseline."
        )
    if has["more_seeds"]:
        parts.append(
            "Seeds needed: so many more would find the difference as it is now, which may be far from the true one, in 80% of "
            "studies."
        )
    return " ".join(parts)


def _factors(study: StudyView, found: Details) -> TextTable | None:
    model = found.factors
    if model is None or not model.terms:
        return None
    exact = model.method == "anova"
    rows = [
        [
            term.name,
            f"{term.df}",
            f"{term.statistic:.3g}",
            p_text(term.p_value, bare=True),
            "" if term.share is None else f"{100 * term.share:.0f}%",
        ]
        for term in model.terms
    ]
    what = (
        f"Analysis of variance (type II) with seeds as blocks; F has {model.residual_df} degrees of freedom below. Share: of the "
        "variation that neither seeds nor other factors explain (partial eta squared)."
        if exact
        else "Cells failed, so this is a mixed model with seeds as random blocks (REML) and Wald tests, which are optimistic "
        "with few seeds; it takes the failed cells for missing at random."
    )
    over = "" if found.factor_arms == len(study.arms) else f" Over {found.factor_arms} of {len(study.arms)} arms."
    where = f"{metric_title(found.metric)} at epoch {found.epoch}"
    text = f"{where[:1].upper()}{where[1:]}. {what}{over} p-values are not adjusted."
    return filled(FACTORS, ["Factor", "df", "F" if exact else "Wald χ²", "p", "Share"], rows, text)


def _importance(found: Details) -> TextTable | None:
    if found.importance is None:
        return None
    rows = [[name, f"{100 * share:.0f}%"] for name, share in found.importance.items()]
    text = (
        "What tells the best tenth of the sampled arms from all of them (PED-ANOVA), by their means over seeds; "
        "no test, and no statement about single values."
    )
    return filled(IMPORTANCE, ["Factor", "Share"], rows, text)


def _interval(unit: Unit, interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    low, high = interval
    decimals = decimals_for(unit, (high - low) / 2, high)
    return f"[{unit.number(low, decimals, sign=sign)}, {unit.number(high, decimals, sign=sign)}]"
