"""Which arms were stopped early, at which epoch, by which rule, and where they stood then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.compare import baseline_of
from simlap.report.race import race_sentence
from simlap.report.stats import finite
from simlap.report.words import decimals_for, metric_title, unit_of

_ASHA = re.compile(
    r"asha: (?P<metric>\S+) (?P<value>\S+) at epoch (?P<epoch>\d+) is not among the best 1/(?P<part>\S+) of (?P<cells>\d+) cells"
)
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class StoppedCell:
    """One run that a scheduler stopped."""

    seed: int
    epoch: int
    why: str
    """By which rule, in words."""
    among: int | None
    """Runs that it was judged among; None where the reason does not say."""
    value: str
    """Of the metric of decisions at that epoch, or empty."""
    standing: str
    """`28th of 30 runs`: among all that have a value there by now; empty where it has none."""


@dataclass(frozen=True)
class StoppedArm:
    """An arm some of whose runs were stopped."""

    arm: str
    cells: list[StoppedCell]
    of: int
    """Planned seeds."""
    summary: str
    """Where the arm stood against the baseline and the best, in a sentence."""


def stopped_arms(study: StudyView) -> list[StoppedArm]:
    """In the order of the study."""
    known: dict[int, list[float]] = {}  # epoch -> values of all runs
    found = []
    for arm in study.arms:
        cells = sorted((cell for cell in arm.cells if cell.state == "stopped"), key=lambda cell: cell.seed)
        if cells:
            told = [_cell(study, arm, cell, known) for cell in cells]
            found.append(StoppedArm(arm.name, told, len(study.seeds_of(arm)), _summary(study, arm, cells)))
    return found


def rule_lead(study: StudyView) -> str:
    """What stops runs in this study, and what cannot be stopped."""
    rules = {
        "asha": "At certain epochs (rungs) a run goes on only if it is among the best share of the runs that got there by then "
        "(ASHA); what comes later may change who would have been among them.",
        "race": "An arm leaves the race when a look at its seeds decides about it; its runs are stopped with that.",
    }
    rule = rules.get(study.scheduler, f"Runs were stopped by the scheduler `{study.scheduler}`.")
    protected = [arm.name for arm in study.arms if arm.protected]
    never = f" Never stopped, as they are protected: {'; '.join(protected[:6])}" if protected else ""
    more = f" and {len(protected) - 6} more" if len(protected) > 6 else ""
    return f"{rule}{never}{more}{'.' * bool(protected)} Standings count all runs that have reached the epoch by now."


def _cell(study: StudyView, arm: ArmView, cell: CellView, known: dict[int, list[float]]) -> StoppedCell:
    unit, value = unit_of(study.metric), cell.metric_at(study.metric, cell.epoch)
    shown = standing = ""
    if value is not None and finite(value):
        values = known.setdefault(cell.epoch, _known(study, study.arms, cell.epoch))
        more = study.more_is_better(study.metric)
        rank = 1 + sum(other > value if more else other < value for other in values)
        shown = unit.number(value, decimals_for(unit, None, value))
        standing = f"{_ordinal(rank)} of {len(values)} runs"
    return StoppedCell(cell.seed, cell.epoch, *_why(study, arm, cell.reason), shown, standing)


def _why(study: StudyView, arm: ArmView, reason: str | None) -> tuple[str, int | None]:
    if reason is None:
        return "no reason was noted", None
    if (m := _ASHA.fullmatch(reason)) is not None:
        text = (
            f"at the rung of epoch {m['epoch']} not among the best {_share(m['part'])} of the runs that had got there"
        )
        return text, int(m["cells"])
    if study.race is not None and reason.startswith("race: "):
        said = race_sentence(study, study.race, arm.name)
        text = said[0].removeprefix(f"{arm.name} ").rstrip(".") if said is not None else reason.removeprefix("race: ")
        return text, None
    return reason, None


def _share(part: str) -> str:
    return {"2": "half", "3": "third", "4": "quarter"}.get(part, f"1/{part}")


def _summary(study: StudyView, arm: ArmView, cells: Sequence[CellView]) -> str:
    """At the earliest epoch at which one of its runs was stopped: the mean of the arm's runs there, and of the others'."""
    epoch = min(cell.epoch for cell in cells)
    means = {one.name: _mean_at(study, one, epoch) for one in study.arms}
    own, baseline = means[arm.name], baseline_of(study)
    if own is None:
        return ""
    unit, more = unit_of(study.metric), study.more_is_better(study.metric)
    others = [mean for mean in means.values() if mean is not None]
    rank = 1 + sum(other > own if more else other < own for other in others)
    decimals = decimals_for(unit, None, own)
    text = f"At epoch {epoch}: {unit.number(own, decimals)} on average, {_ordinal(rank)} of {len(others)} arms"
    other = means.get(baseline.name) if baseline is not None and baseline is not arm else None
    if other is not None:
        text += f"; the baseline {unit.number(other, decimals)}"
    best = max(others) if more else min(others)
    if best != other and best != own:
        text += f"; the best {unit.number(best, decimals)}"
    return f"{text} ({metric_title(study.metric)}, seeds that got there)."


def _mean_at(study: StudyView, arm: ArmView, epoch: int) -> float | None:
    values = _known(study, [arm], epoch)
    return sum(values) / len(values) if values else None


def _known(study: StudyView, arms: Sequence[ArmView], epoch: int) -> list[float]:
    """Values of all runs of some arms at an epoch."""
    found = [cell.metric_at(study.metric, epoch) for arm in arms for cell in arm.cells]
    return [value for value in found if value is not None and finite(value)]


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else _ORDINALS.get(number % 10, "th")
    return f"{number}{ending}"
