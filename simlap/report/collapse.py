"""Collapse over training, of one run or of several side by side, as one self-contained HTML page with its data beside it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from os import PathLike

import plotly.graph_objects as go

from simlap.record.view import ArmView, CellView, StudyView
from simlap.report.figures import COLLAPSE_METRICS, GATE_METRICS
from simlap.report.page import document
from simlap.report.sections.plots import COLLAPSE_TEXT, GATES_TEXT, small_curves
from simlap.storage import Storage


def write_collapse_page(
    runs: Mapping[str, CellView], out: Storage | str | PathLike[str], title: str, *, name: str = "collapse"
) -> list[str]:
    """Write `<name>.html` and `<name>.json` to a folder; returns their names there.

    Args:
        runs: by the name they are shown under.
        out: the folder.
        title: of the page.
        name: of the files.

    Raises:
        ValueError: no run has measured collapse.
    """
    metrics = (*COLLAPSE_METRICS, *GATE_METRICS)
    data = {
        run: {metric: [[r.epoch, r.metrics[metric]] for r in view.rows if metric in r.metrics] for metric in metrics}
        for run, view in runs.items()
    }
    storage = out if isinstance(out, Storage) else Storage(out)
    storage.write(f"{name}.html", collapse_page(runs, title).encode())
    storage.write_json(f"{name}.json", {"schema_version": 1, "kind": "collapse", "runs": data})
    return [f"{name}.html", f"{name}.json"]


def collapse_page(runs: Mapping[str, CellView], title: str) -> str:
    """The whole page as text. Arguments and errors as in `write_collapse_page`."""
    # a study of as many arms as runs, with one seed each, is drawn as any other
    seen = {run: CellView(view.cell_id, 0, view.state, view.rows) for run, view in runs.items()}
    study = StudyView(
        name=title,
        metric=COLLAPSE_METRICS[0],
        mode="max",
        report_metric=COLLAPSE_METRICS[0],
        epochs=max((view.epoch for view in seen.values()), default=0),
        seeds=[0],
        factors={"run": list(seen)},
        arms=[ArmView(run, {"run": run}, True, i == 0, [view]) for i, (run, view) in enumerate(seen.items())],
    )
    plots: dict[str, go.Figure] = {}
    collapse = small_curves(study, plots, "Collapse", COLLAPSE_TEXT, COLLAPSE_METRICS)
    if not collapse:
        raise ValueError("no run has measured collapse: add `{kind: collapse}` to evaluate")
    gates = small_curves(study, plots, "Gates", GATES_TEXT, GATE_METRICS)
    facts = f"<li><b>{len(seen)}</b> run{'s' * (len(seen) != 1)}</li><li><b>{study.epochs}</b> epochs</li>"
    kicker = '<p class="kicker">Collapse over training</p>'
    header = f'<header>{kicker}<h1>{escape(title)}</h1><ul class="facts">{facts}</ul></header>'
    return document(f"{title} · simlap collapse", header + collapse + gates, plots)
