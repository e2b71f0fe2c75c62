"""Which combinations of two factors' levels do better than their parts: a heat map of means for every pair of factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import plotly.graph_objects as go

from simlap.record.view import ArmView, StudyView
from simlap.report.compare import common_epochs, values_at
from simlap.report.detail import Details, comparable
from simlap.report.factors import FactorTests, Measured, factor_tests
from simlap.report.figures import dress, plain_text
from simlap.report.page import described
from simlap.report.words import decimals_for, metric_title, p_text, unit_of

MAX_PAIRS = 10
"""Pairs of factors that are shown, those with the smallest p-values first."""
MAX_LEVELS = 24
"""Of a factor; a map of more has no room for numbers."""


@dataclass(frozen=True)
class Interaction:
    """Two factors; of each combination of their levels, the mean over seeds and over all levels of the other factors."""

    factors: tuple[str, str]
    rows: list[str]
    """Levels of the first factor."""
    columns: list[str]
    means: list[list[float]]
    """[rows, columns]"""
    p_value: float | None
    """Of the interaction term, not adjusted; None where the design or a race has none."""

    @property
    def spread(self) -> float:
        """The largest departure from the sum of the two factors' own effects, from which p-values aside pairs are ordered."""
        grand = _mean([_mean(row) for row in self.means])
        by_row = [_mean(row) for row in self.means]
        by_column = [_mean(column) for column in zip(*self.means, strict=True)]
        return max(
            abs(value - by_row[i] - by_column[j] + grand)
            for i, row in enumerate(self.means)
            for j, value in enumerate(row)
        )


@dataclass(frozen=True)
class Interactions:
    """All pairs of factors that the study crosses."""

    metric: str
    epoch: int
    """At which all arms are measured."""
    whole: bool
    """Whether that is where the study compares finished arms; else it is as far as all arms came."""
    pairs: list[Interaction]
    left_out: int
    """Pairs beyond `MAX_PAIRS`."""


def interactions(study: StudyView, details: Details | None) -> Interactions | None:
    """Means where all arms have been measured: at the end, or else at the highest epoch that all of them reached.

    None where no two factors are crossed: every combination of their levels with the same levels of the other factors.

    Args:
        study: the study.
        details: with the tests of its factors; None for a race, which makes no other tests than its own.
    """
    crossed = [pair for pair in combinations(_varied(study), 2) if _groups(study, *pair) is not None]
    if not crossed:
        return None
    metric, epoch, values = comparable(study)
    whole = all(arm.name in values for arm in study.arms)
    tests = details.factors if details is not None and details.factor_arms == len(study.arms) else None
    if not whole:
        epochs = common_epochs(study, study.arms, study.metric) if study.compare == "common" else []
        if not epochs:
            return None
        metric, epoch = study.metric, epochs[-1]
        values = {arm.name: values_at(study, arm, metric, epoch) or [] for arm in study.arms}
        tests = _tests(study, values) if details is not None else None
    pairs = [_interaction(study, pair, values, tests) for pair in crossed]
    order = sorted(pairs, key=lambda p: (1.0 if p.p_value is None else p.p_value, -p.spread))
    kept = order[:MAX_PAIRS]
    return Interactions(metric, epoch, whole, [p for p in pairs if p in kept], len(pairs) - len(kept))


def heat_map(study: StudyView, found: Interactions, pair: Interaction) -> go.Figure:
    """The means, with their numbers in the cells."""
    unit = unit_of(found.metric)
    values = [value for row in pair.means for value in row]
    decimals = decimals_for(unit, (max(values) - min(values)) / 10 or None, max(values, key=abs))
    texts = [[unit.number(value, decimals) for value in row] for row in pair.means]
    first, second = map(plain_text, pair.factors)
    figure = go.Figure(
        go.Heatmap(
            z=[[value * unit.scale for value in row] for row in pair.means], text=texts,
            x=[plain_text(level) for level in pair.columns], y=[plain_text(level) for level in pair.rows],
            texttemplate="%{text}" if len(pair.columns) <= 12 else None, colorscale="Cividis", showscale=False, xgap=2, ygap=2,
            reversescale=not study.more_is_better(found.metric),
            hovertemplate=f"{first}=%{{y}}, {second}=%{{x}}<br>%{{text}}<extra></extra>",
        )
    )  # fmt: skip
    dress(figure)
    axis = {"type": "category", "showgrid": False, "ticks": "", "showline": False}
    figure.update_xaxes(**axis, title_text=second, side="bottom")
    figure.update_yaxes(**axis, title_text=first, autorange="reversed")
    figure.update_layout(height=110 + 44 * len(pair.rows))
    said = "; ".join(
        f"{pair.factors[0]} {level}: "
        + ", ".join(f"{column} {text}" for column, text in zip(pair.columns, row, strict=True))
        for level, row in zip(pair.rows, texts, strict=True)
    )
    title = " × ".join(pair.factors)
    return described(figure, title, f"Means of {metric_title(found.metric)}. {said}.")


def where_text(study: StudyView, found: Interactions) -> str:
    """What the maps show, above them."""
    text = f"Mean {metric_title(found.metric)} at epoch {found.epoch}"
    if not found.whole:
        text += ", the highest that all planned seeds of all arms reached,"
    text += " over seeds and over all levels of the other factors."
    if study.race is not None:
        text += " Arms have the seeds that the race gave them."
    elif any(pair.p_value is not None for pair in found.pairs):
        text += " p: of the interaction, so small where the two factors' effects do not add up (not adjusted)."
    if found.left_out:
        text += f" Shown are the {len(found.pairs)} pairs of {len(found.pairs) + found.left_out} that depart furthest from that."
    return text


def p_note(pair: Interaction) -> str:
    """`interaction: p = 0.012`, or nothing."""
    return f"interaction: {p_text(pair.p_value)}" if pair.p_value is not None else ""


def _interaction(
    study: StudyView, pair: tuple[str, str], values: Mapping[str, Sequence[float]], tests: FactorTests | None
) -> Interaction:
    groups = _groups(study, *pair) or {}
    rows, columns = (study.factors[factor] for factor in pair)
    means = [[_mean([_mean(values[arm.name]) for arm in groups[row, column]]) for column in columns] for row in rows]
    terms = tests.terms if tests is not None else []
    p = next((term.p_value for term in terms if set(term.factors) == set(pair)), None)
    return Interaction(pair, rows, columns, means, p)


def _varied(study: StudyView) -> list[str]:
    return [factor for factor, levels in study.factors.items() if 1 < len(levels) <= MAX_LEVELS]


def _groups(study: StudyView, first: str, second: str) -> dict[tuple[str, str], list[ArmView]] | None:
    """The arms of each combination of levels; None unless all combinations have the same levels of the other factors."""
    groups: dict[tuple[str, str], list[ArmView]] = {
        (a, b): [] for a in study.factors[first] for b in study.factors[second]
    }
    for arm in study.arms:
        key = (arm.levels.get(first, ""), arm.levels.get(second, ""))
        if key not in groups:  # a factor that exists on some arms only
            return None
        groups[key].append(arm)
    others = [
        sorted(tuple(v for k, v in arm.levels.items() if k not in (first, second)) for arm in arms)
        for arms in groups.values()
    ]
    return groups if others[0] and all(other == others[0] for other in others) else None


def _tests(study: StudyView, values: Mapping[str, Sequence[float]]) -> FactorTests | None:
    rows = [
        Measured(seed, arm.levels, value)
        for arm in study.arms
        for seed, value in zip(study.seeds_of(arm), values[arm.name], strict=True)
    ]
    return factor_tests(rows, list(study.factors))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
