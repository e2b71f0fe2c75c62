"""The table of tuned values: at what each arm is compared, and how its search came to that."""

from __future__ import annotations

from typing import Any

from simlap.record.view import SearchView, StudyView
from simlap.report.text_table import TextTable
from simlap.report.words import metric_title, unit_of

TITLE = "Tuned values"


def tuned_table(study: StudyView) -> TextTable | None:
    """None where nothing is searched for."""
    if not study.searches:
        return None
    names = list(dict.fromkeys(name for s in study.searches for trial in s.trials for name in trial.values))
    rows = [
        [name, *(_text((values or {}).get(key)) for key in names), _value(study, search), _state(study, search)]
        for search in study.searches
        for name, values in search.arms.items()
    ]
    order = {arm.name: i for i, arm in enumerate(study.arms)}
    title = metric_title(study.metric)
    rows.sort(key=lambda row: order[row[0]])
    return TextTable(TITLE, ["Arm", *names, title[:1].upper() + title[1:], "Trial"], rows, _caption(study))


def summary_tuned(study: StudyView) -> dict[str, Any]:
    """For machines: by arm, its values, the value of the trial that they are from, and how many trials there were."""
    return {
        name: {
            "values": values,
            "metric": study.metric,
            "value": search.value,
            "trial": search.best,
            "trials": search.of,
            "failed": _failed(study, search),
        }
        for search in study.searches
        for name, values in search.arms.items()
    }


def _caption(study: StudyView) -> str:
    return (
        f"Each arm was compared at the values that were best in its search, by {study.metric} in trials with seeds that the "
        "comparison does not use. A search that covers several arms was made in the baseline."
    )


def _state(study: StudyView, search: SearchView) -> str:
    failed = _failed(study, search)
    note = f", {failed} failed" if failed else ""
    if search.best is not None:
        return f"{search.best} of {search.of}{note}"
    over = failed + sum(trial.value(study.metric) is not None for trial in search.trials)
    return f"all {search.of} failed" if search.failed else f"{over} of {search.of} over{note}"


def _failed(study: StudyView, search: SearchView) -> int:
    return sum(
        trial.reason is not None
        or any(cell.state == "failed" for cell in trial.cells)
        or (all(cell.state == "done" for cell in trial.cells) and trial.value(study.metric) is None)
        for trial in search.trials
    )


def _value(study: StudyView, search: SearchView) -> str:
    unit = unit_of(study.metric)
    return "" if search.value is None else unit.number(search.value, 2 if unit.percent else 4)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
