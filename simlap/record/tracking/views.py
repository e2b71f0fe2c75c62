"""Saved views of a study's experiment page: MLflow opens a nested experiment with one collapsed row and no chart.

A view is an experiment tag `mlflow.sharedViewState.<key>` that the page offers under "Views" and opens by
`viewStateShareKey=<key>`. Its form is not documented; a page that does not understand it shows its default.
"""

from __future__ import annotations

import json
from typing import Any

from simlap.record.tracking.names import safe_name
from simlap.record.view import StudyView

PREFIX = "mlflow.sharedViewState."
SECTIONS = ("val", "train", "final", "test", "gate", "collapse", "time")
"""Sections of the chart page in reading order; the page's own order is alphabetical."""
CURVES = "curves"
"""Key of the view that links open: learning curves, averaged over the seeds of each arm."""


def saved_views(study: StudyView) -> dict[str, str]:
    """Experiment tags by key."""
    factors = [_column("params", safe_name(f"factor.{name}")) for name in study.factors]
    final = _column("metrics", f"final/{safe_name(study.report_metric).replace('/', '_')}")
    metric = _column("metrics", safe_name(study.metric))
    arms = [_column("metrics", name) for name in ("n", "mean", "std", "ci_low", "ci_high", "difference", "p_adjusted")]
    state = [_column("tags", "simlap.state"), _column("tags", "simlap.seed")]
    arm = _column("tags", "simlap.arm")
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "simlap.arm"}]}
    best = _column("metrics", "mean")
    # Ordered by time, the page would nest the runs under collapsed parents.
    return {
        f"{PREFIX}arms": _view(
            "Arms: the result", "arm", [*factors, *arms, _column("tags", "simlap.cells")], best, study.mode == "min"
        ),
        f"{PREFIX}{CURVES}": _view("Curves: mean over seeds", "cell", [metric, final], arm, True, by_arm),
        f"{PREFIX}cells": _view("Cells: every run", "cell", [*state, *factors, metric, final], arm, True),
    }


def _view(
    name: str, kind: str, columns: list[str], order: str, ascending: bool, group_by: dict[str, Any] | None = None
) -> str:
    sections = [
        {"uuid": f"simlap-{section}", "name": section, "display": True, "isReordered": False, "deleted": False}
        for section in SECTIONS
    ]
    order_of_charts = {"compareRunSections": sections, "compareRunCharts": [], "isAccordionReordered": True}
    state = {
        "searchFilter": f"tags.`simlap.kind` = '{kind}'",
        "orderByKey": order,
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": group_by,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        **(order_of_charts if kind == "cell" else {}),
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
