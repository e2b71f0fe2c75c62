"""The words of a race in the report: its verdicts, and what its numbers are."""

from __future__ import annotations

from simlap.record.view import DecisionView, RaceView, StudyView
from simlap.report.words import TEST_DECISIONS, metric_title, split_word

FUTILE = "cannot be decided with the planned seeds"


def verdict_text(decision: DecisionView) -> str:
    """In words."""
    if decision.verdict == "futile":
        return FUTILE
    if decision.verdict == "undecided":
        return "undecided" if decision.leaves else "not decided yet"
    return decision.verdict


def verdict_word(decision: DecisionView) -> str:
    """In a word: what is undecided and goes on is open."""
    return "open" if decision.verdict == "undecided" and not decision.leaves else decision.verdict


def race_caption(study: StudyView, race: RaceView) -> str:
    """What the columns mean, under every table."""
    level = f"{100 * (1 - race.alpha):g}%"
    other = "the baseline" if race.against == "baseline" else "the arm that is named"
    text = (
        f"Race on {study.metric}. Verdict: of paired group-sequential t tests; that any of them is wrongly better or worse has "
        f"probability {race.alpha:g} at most; futile: {FUTILE}. Seeds: used, of those planned at most. Difference to {other}: "
        f"over the seeds of the look that decided, paired by seed, with the {level} confidence interval that holds over all "
        "looks and arms; p: sequential, over all looks and arms. "
        f"{metric_title(study.report_metric).capitalize()} at epoch {study.epochs}: mean ± half-width of the 95% t interval over "
        "the same seeds; not tested."
    )
    return text if study.validation else f"{text} {TEST_DECISIONS}"


def race_lead(study: StudyView, race: RaceView) -> str:
    """Above the answer."""
    others = "the baseline" if race.against == "baseline" else "the others"
    return (
        f"Every arm against {others}, decided on {split_word(study.metric)} data over the seeds of the look that decided. "
        "p-values and intervals hold over all looks and all arms; no other test is made."
    )
