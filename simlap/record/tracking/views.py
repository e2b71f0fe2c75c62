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
ARM_NUMBERS = (
    "mean", "ci_low", "ci_high", "difference", "difference_ci_low", "difference_ci_high", "p_adjusted", "n", "early_difference",
    "common_mean",
)  # fmt: skip
CHARTS = ("val/probe_top1", "val/probe_loss", "train/loss", "train/nce", "train/probe_top1", "train/probe_loss")
"""Measured every epoch: before those with a single point."""
ARMS = "arms"
"""Key of the view with a row for each arm: mean, interval, difference, adjusted p."""
TREE = "tree"
"""Key of the view of all runs: study, arms, cells. Which of them are unfolded is the browser's: MLflow takes no view's word."""
NAME = "attributes.`Run Name`"
CURVES = "curves"
"""Key of the view that links open: learning curves, averaged over the seeds of each arm."""


def saved_views(study: StudyView) -> dict[str, str]:
    """Experiment tags by key."""
    factors = [_column("params", safe_name(f"factor.{name}")) for name in study.factors]
    final = _column("metrics", f"final/{safe_name(study.report_metric).replace('/', '_')}")
    metric = _column("metrics", safe_name(study.metric))
    arms = [_column("metrics", name) for name in ARM_NUMBERS]
    state = [_column("tags", "simlap.state"), _column("tags", "simlap.seed")]
    arm = _column("tags", "simlap.arm")
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "simlap.arm"}]}
    groups = [f"tag.simlap.arm.{one.name}" for one in study.arms]
    charts = _charts(study)
    best = _column("metrics", "mean")
    # Ordered by time, the page would nest the runs under collapsed parents.
    return {
        f"{PREFIX}{ARMS}": _view(
            "Arms: the result", "arm", [*factors, *arms, _column("tags", "simlap.cells")], best,
            not study.more_is_better(study.report_metric),
        ),
        f"{PREFIX}{CURVES}": _view(
            "Curves: mean over seeds", "cell", [metric, final], arm, True,
            compareRunCharts=charts, groupBy=by_arm, groupsExpanded=dict.fromkeys(groups, False),
        ),
        f"{PREFIX}cells": _view(
            "Cells: every run", "cell", [*state, *factors, metric, final], arm, True, compareRunCharts=charts
        ),
        **{
            f"{PREFIX}by-{number}": _view(
                f"Curves: by {name}", "cell", [metric, final], arm, True, compareRunCharts=charts,
                groupBy={"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": factor}]},
                groupsExpanded={f"param.{factor}.{level}": False for level in study.factors[name]},
            )
            for number, (name, factor) in enumerate((name, safe_name(f"factor.{name}")) for name in study.factors)
        },
        f"{PREFIX}{TREE}": _view(
            "Tree: study, arms, cells", "", [*arms[:1], arms[3], arms[6], metric, final, state[0]], "attributes.start_time", True,
        ),
        "mlflow.experiment.primaryMetric.name": safe_name(study.metric),
    }  # fmt: skip


def _charts(study: StudyView) -> list[dict[str, Any]]:
    """The charts that come first in their sections, the metric of decisions before all; the page adds the others."""
    first = [safe_name(study.metric), *CHARTS, f"final/{safe_name(study.report_metric).replace('/', '_')}"]
    return [
        {
            "uuid": f"simlap-{name}",
            "type": "BAR" if name.startswith("final/") else "LINE",
            "metricKey": name,
            "displayName": name.partition("/")[2],
            "metricSectionId": f"simlap-{name.partition('/')[0]}",
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": True,
            "lineSmoothness": 0,
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "selectedXAxisMetricKey": "",
            "range": {},
            "ignoreOutliers": False,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
        for name in dict.fromkeys(first)
        if name.partition("/")[0] in SECTIONS
    ]


def _view(name: str, kind: str, columns: list[str], order: str, ascending: bool, **more: Any) -> str:
    sections = [
        {"uuid": f"simlap-{section}", "name": section, "display": True, "isReordered": True, "deleted": False}
        for section in SECTIONS
    ]
    in_sections = {"compareRunSections": sections, "isAccordionReordered": True}
    state = {
        "searchFilter": f"tags.`simlap.kind` = '{kind}'" if kind else "",
        "orderByKey": order,
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": ["1", NAME, "runDateAndNestInfo", "duration", *columns],
        "columnWidths": {NAME: 330},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        **(in_sections if kind == "cell" else {}),
        **more,
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
