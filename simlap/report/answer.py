"""The answer in sentences: what each level of each factor does, against the baseline's level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simlap.evaluate.gate_failures import failure_text, gate_failures
from simlap.evaluate.openness import gate_warning
from simlap.record.view import ArmView, CellView, RaceView, StudyView
from simlap.report.compare import Comparison, Effect, baseline_of, planned_cells
from simlap.report.inference import SIGN_FLIP_SEEDS, normality
from simlap.report.origin import other_code, superseded_text
from simlap.report.race import race_sentence
from simlap.report.stats import finite
from simlap.report.words import (
    TEST_DECISIONS,
    arm_state,
    decimals_for,
    levels_text,
    p_text,
    rule_text,
    split_word,
    unit_of,
)

_NOT_NORMAL = 0.01
"""Lower than 0.05: of many arms, some would be named by chance."""
Verdict = Literal["better", "worse", "same", "open"]


@dataclass(frozen=True)
class Sentence:
    """One effect in words. `verdict` is about the level against the baseline's; `open`: it cannot be said (yet)."""

    text: str
    verdict: Verdict
    factor: str
    label: str = ""
    """Of the verdict, where it is another word."""


@dataclass(frozen=True)
class Notice:
    """Something the reader must know before trusting the table."""

    level: Literal["warning", "note"]
    text: str
    detail: str = ""
    kind: Literal["failure", "other"] = "other"
    """A `failure` is one failed cell; `detail` is its error."""


def sentence(study: StudyView, effect: Effect) -> Sentence:
    """`With pairs=distinct, filter off is worse than filter on by 7.1 ± 0.9 points (95% CI, paired over ...)`."""
    comparison, test = effect.comparison, effect.comparison.paired
    where = f"With {levels_text(effect.at)}, " if effect.at else ""
    level, other = f"{effect.factor} {effect.level}", f"{effect.factor} {effect.reference_level}"
    if test is None:
        text = f"{where}{level} cannot be compared with {other} yet: {comparison.blocked}."
        return Sentence(_capital(text), "open", effect.factor)
    early = "" if comparison.final else _early(study, effect)
    unit = unit_of(comparison.metric)
    decimals = decimals_for(unit, test.half_width, test.mean)
    size = unit.number(abs(test.mean), decimals)
    up = test.mean > 0 if study.more_is_better(comparison.metric) else test.mean < 0
    word: Verdict = "better" if up else "worse"
    if test.n == 1 or test.half_width is None:
        direction = f"{word} than {other} by {size}{unit.suffix}" if test.mean else f"equal to {other}"
        text = f"{where}{early}{level} is {direction}, but with one seed there is no interval."
        return Sentence(_capital(text), "open", effect.factor)
    half = unit.number(test.half_width, decimals)
    basis = f"95% CI, paired over {test.n} seeds, {p_text(test.p_adjusted)}"
    if test.significant:
        text = f"{where}{early}{level} is {word} than {other} by {size} ± {half}{unit.suffix} ({basis})."
        return Sentence(_capital(text), word, effect.factor)
    signed = unit.number(test.mean, decimals, sign=True)
    text = f"{where}{early}{level} is not distinguishable from {other} ({signed} ± {half}{unit.suffix}; {basis})."
    return Sentence(_capital(text), "same", effect.factor)


def sentences(study: StudyView, effects: Sequence[Effect]) -> list[Sentence]:
    return [sentence(study, effect) for effect in effects]


def race_sentences(study: StudyView, race: RaceView) -> list[Sentence]:
    """One for each arm that was looked at."""
    found = [(arm.name, race_sentence(study, race, arm.name)) for arm in study.arms]
    return [Sentence(said[0], said[1], arm, said[2]) for arm, said in found if said is not None]


def notices(study: StudyView, comparisons: Mapping[str, Comparison] | None = None) -> list[Notice]:
    """Warnings first, then notes. `comparisons`: with the baseline, by arm; none of a race, whose tests are its own."""
    found: list[Notice] = []
    if not study.validation:
        found.append(Notice("warning", TEST_DECISIONS))
    if study.declared_late:
        text = f"Declared when there were results already: {', '.join(study.declared_late)}. That is no prediction."
        found.append(Notice("warning", text))
    if baseline_of(study) is None:
        found.append(Notice("warning", "No arm is the baseline, so no differences to it are shown."))
    if len(study.seeds) < 3:
        count = "one seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
        found.append(Notice("warning", f"Only {count} per arm: intervals are missing or very wide. Use 5 or more."))
    for arm in study.arms:
        for cell in arm.cells:
            if cell.state == "failed":
                when = f"after epoch {cell.epoch}" if cell.epoch else "before its first epoch"
                text = f"{arm.name}, seed {cell.seed}, failed {when}."
                found.append(Notice("warning", text, cell.error or "no error text", "failure"))
    found += [notice for arm in study.arms if (notice := _not_finite(study, arm))]
    found += [notice for arm in study.arms for notice in _gates(study, arm)]
    found += _not_normal(comparisons or {})
    if (code := other_code(study)) is not None and code.differs:
        found.append(Notice("warning", code.text, code.detail))
    if code is not None and not code.differs:
        found.append(Notice("note", code.text))
    if old := superseded_text(study):
        found.append(Notice("note", old))
    states = {arm.name: arm_state(study, arm) for arm in study.arms}
    unfinished = [f"{name}: {text}" for name, (word, text) in states.items() if word != "done"]
    if study.race is not None:
        if not study.race.over:
            found.append(Notice("note", "The race is not over: cells of its next look are still to be run."))
        return found
    if study.compare != "common":
        found.append(Notice("note", rule_text(study)))
    if unfinished:
        found.append(
            Notice(
                "note",
                f"{len(unfinished)} of {len(study.arms)} arms are not finished with every seed. {rule_text(study)} Seeds that "
                "went further alone are not averaged.",
                "\n".join(unfinished),
            )
        )
    if any(word == "stopped" for word, _ in states.values()):
        found.append(
            Notice(
                "note",
                f"Whether an arm is stopped early was decided on {split_word(study.metric)} data, "
                "which also measures its difference: p-values of stopped arms are optimistic.",
            )
        )
    return found


def _not_normal(comparisons: Mapping[str, Comparison]) -> list[Notice]:
    """Differences that are too far from normal for the t test to be trusted; with few seeds the test seldom sees it."""
    lines = []
    for arm, comparison in comparisons.items():
        p = normality(comparison.paired.differences) if comparison.paired is not None else None
        if p is not None and p < _NOT_NORMAL:
            lines.append(f"{arm}: Shapiro-Wilk {p_text(p)}")
    if not lines:
        return []
    text = (
        f"The differences to the baseline of {len(lines)} arm{'s' * (len(lines) > 1)} are not normally distributed: their t "
        f"tests and t intervals may mislead. The sign-flip test, from {SIGN_FLIP_SEEDS} seeds on, does not need it."
    )
    return [Notice("warning", text, "\n".join(lines))]


def _gates(study: StudyView, arm: ArmView) -> list[Notice]:
    """Signs that the filter failed (docs/gates.md): all gates near 0 or near 1, seen in training, and those that the final
    evaluation of the gates shows, or `simlap gates` found."""
    warnings: list[str] = []
    failures: dict[str, list[str]] = {}
    for cell in arm.cells:
        mean = cell.metric_at("gate/mean", cell.epoch)
        metrics = _gate_metrics(study, arm, cell)
        text = gate_warning(mean) if mean is not None else None
        shown = gate_failures(metrics) if text is None and "activation" in metrics and cell.state == "done" else []
        if text is None and not shown:
            continue  # before its configuration is read: a study has thousands of cells
        method = cell.config.get("method", {})
        if method.get("gate", {}).get("kind", "open") == "open":
            continue
        if text is not None:
            warnings.append(f"seed {cell.seed}: {text}")
        # with identical pairs, the gates of two classes are never trained: what they are says nothing
        for failure in shown if method.get("pairs") != "identical" else []:
            failures.setdefault(failure.short, []).append(f"seed {cell.seed}: {failure_text(failure)}")
    found = []
    if warnings:
        text = f"{arm.name}: in {len(warnings)} of {len(arm.cells)} cells all gates are near 0, or all near 1."
        found.append(Notice("warning", text, "\n".join(warnings)))
    for short, lines in failures.items():
        text = f"{arm.name}: in {len(lines)} of {len(arm.cells)} cells {short}."
        found.append(Notice("warning", text, "\n".join(lines)))
    return found


def _gate_metrics(study: StudyView, arm: ArmView, cell: CellView) -> Mapping[str, float]:
    """What the final evaluation of the gates gave, or `simlap gates` afterwards; nothing where there was neither."""
    last = cell.rows[-1].metrics if cell.rows else {}
    if "gates/activation" in last:
        return {name.removeprefix("gates/"): value for name, value in last.items() if name.startswith("gates/")}
    seed = str(cell.seed)
    for entry in study.gates.get("arms", []):
        if entry["arm"] == arm.name and entry["cells"].get(seed) == cell.cell_id:
            found: Mapping[str, float] = entry["by_seed"][seed]
            return found
    return {}


def _early(study: StudyView, effect: Effect) -> str:
    """Where the two are compared, as it is not at the end, and why: `filter off stopped early, compared at epoch 5 on ...: `."""
    comparison = effect.comparison
    where = f"{'by the best value up to' if comparison.best else 'at'} epoch {comparison.epoch}"
    why = [] if comparison.declared else _why_early(study, effect)
    if not (why or comparison.declared or comparison.best):
        why = ["final values missing"]
    parts = [*([" and ".join(why)] if why else []), f"compared {where} on {split_word(comparison.metric)}: "]
    return ", ".join(parts)


def _why_early(study: StudyView, effect: Effect) -> list[str]:
    """Which side did not reach the end, and how: `stopped early`, `filter on not finished (1 failed)`."""
    arms = {arm.name: arm for arm in study.arms}
    sides = [(effect.comparison.arm, effect.level), (effect.comparison.reference, effect.reference_level)]
    parts: list[str] = []
    for name, level in sides:
        state, text = arm_state(study, arms[name])
        if state == "stopped":
            parts.append(f"{effect.factor} {level} stopped early")
        elif state != "done":
            parts.append(f"{effect.factor} {level} not finished ({text})")
    return parts


def _not_finite(study: StudyView, arm: ArmView) -> Notice | None:
    """A metric that became infinite or not a number is never shown, so it is said."""
    bad: list[str] = []
    for seed, cell in zip(study.seeds_of(arm), planned_cells(study, arm), strict=True):
        for row in cell.rows if cell is not None else []:
            value = row.metrics.get(study.metric)
            if value is not None and not finite(value):
                bad.append(f"seed {seed} from epoch {row.epoch}")
                break
        value = cell.result.get(study.report_metric) if cell is not None else None
        if value is not None and not finite(value):
            bad.append(f"seed {seed} at the end ({study.report_metric})")
    return Notice("warning", f"{arm.name} diverged: values that are not finite.", "\n".join(bad)) if bad else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
