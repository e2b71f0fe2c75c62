"""What the gates of a study's arms learnt: an overview of their pages, and the study report's section about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from simlap.evaluate.gate_failures import gate_failures
from simlap.record.view import StudyView
from simlap.report.gate_figures import GateData, group_keys
from simlap.report.gate_map import class_map_of, map_figure
from simlap.report.gate_seeds import relation_text
from simlap.report.page import document, plot_box, section

SCHEMA_VERSION = 1
"""Of `gates/summary.json`."""
PAGE = "index.html"
_MAX_MAPS = 12
_HIERARCHY = "ρ with the hierarchy"
_COLUMNS = ("Arm", "Seeds", "Mean gate", "Entropy", "ρ between seeds", _HIERARCHY, "ρ with features", "Failures")
_LINK = 'style="color:var(--accent)"'
_STYLE = ".keys span{display:inline-flex;align-items:center;gap:.4rem;font-size:.82rem;margin-right:.5rem}"
_STYLE += ".keys i{width:.8rem;height:.8rem;border-radius:.2rem}"
READING = (
    "ρ between seeds: Spearman's correlation of the class distances, mean over all pairs of seeds. ρ with the hierarchy and "
    "with the classes' mean features: of the mean distances over seeds; p from permuting the classes."
)


def arm_entry(arm: str, cells: Mapping[int, str], page: str, merged: Mapping[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds of an arm.

    Args:
        arm: its name.
        cells: ids of its runs, by seed.
        page: its file, in the folder of the summary.
        merged: of `simlap.evaluate.gate_seeds.merge_seeds`.
    """
    return {
        "arm": arm,
        "page": page,
        "cells": {str(seed): cell_id for seed, cell_id in cells.items()},
        "metrics": merged["metrics"],
        "by_seed": merged["seeds"],
        "agreement": merged["agreement"],
    }


def overview_page(
    study: str, entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], left_out: Sequence[str]
) -> str:
    """The page that leads to those of the arms.

    Args:
        study: its name.
        entries: of each arm what `arm_entry` gives, and the artefact of its seeds together.
        left_out: why arms are not there, in words.
    """
    plots: dict[str, go.Figure] = {}
    summary = {"arms": [entry for entry, _ in entries]}
    notes = "".join(f'<div class="notice note">{escape(text)}</div>' for text in left_out)
    header = (
        f'<header><p class="kicker">Gate analysis of a study</p><h1>{escape(study)}</h1>'
        f'<ul class="facts"><li><b>{len(entries)}</b> arm{"s" * (len(entries) != 1)} with learnt gates</li></ul></header>'
    )
    body = header + section("Arms", READING, _table(summary, "")) + notes + _maps(entries, plots)
    return document(f"{study} · simlap gates", body, plots, _STYLE)


def gates_section(study: StudyView, folder: str = "../gates/") -> str:
    """The section of a study's report: key numbers by arm, with links to their pages; empty where `simlap gates` was not asked.

    Args:
        study: with what `simlap gates` found of it.
        folder: where its pages lie, seen from the report.
    """
    summary = study.gates
    if not summary.get("arms"):
        return ""
    text = f"By simlap gates {study.name}; the pages lie in studies/{study.name}/gates. {READING}"
    more = f'<p class="caption"><a {_LINK} href="{escape(folder + PAGE)}">All arms side by side</a></p>'
    if outdated := _outdated(study):
        more += f'<div class="notice note">{escape(outdated)}</div>'
    return section("What the gates learnt", text, _table(summary, folder) + more)


def _outdated(study: StudyView) -> str:
    """That runs have ended since, in words; empty where none have."""
    seen = {entry["arm"]: set(entry["cells"].values()) for entry in study.gates["arms"]}
    done = {arm.name: {cell.cell_id for cell in arm.cells if cell.state == "done"} for arm in study.arms}
    others = [arm for arm, cells in seen.items() if cells != done.get(arm, set())]
    if not others:
        return ""
    return f"Not of the runs that are finished now: {', '.join(others)}. simlap gates {study.name} looks again."


def _table(summary: Mapping[str, Any], folder: str) -> str:
    known = any("spearman_hierarchy" in entry["metrics"] for entry in summary["arms"])
    columns = [name for name in _COLUMNS if known or name != _HIERARCHY]
    numbers = range(1, len(columns) - 1)
    head = "".join(f"<th{' class=num' if i in numbers else ''}>{name}</th>" for i, name in enumerate(columns))
    rows = "".join(_row(entry, columns, folder) for entry in summary["arms"])
    return f'<table class="arms"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(entry: Mapping[str, Any], columns: Sequence[str], folder: str) -> str:
    metrics, agreement = entry["metrics"], entry["agreement"]
    numbers = (
        str(len(entry["cells"])),
        f"{metrics['activation']:.3f}",
        f"{metrics['entropy']:.3f}",
        "–" if agreement is None else f"{agreement['mean']:+.2f}".replace("-", "−"),
        relation_text(metrics, "hierarchy"),
        relation_text(metrics, "features"),
    )
    texts = dict(zip(_COLUMNS[1:-1], numbers, strict=True))
    cells = "".join(
        f"<td data-label='{escape(name)}' class=num><span>{escape(texts[name])}</span></td>" for name in columns[1:-1]
    )
    link = f'<a {_LINK} href="{escape(folder + entry["page"])}">{escape(entry["arm"])}</a>'
    failures = failures_text(entry["by_seed"])
    chip = f'<span class="chip {"failed" if failures else "same"}" style="white-space:normal">{escape(failures or "none")}</span>'
    return f"<tr><td class=arm>{link}</td>{cells}<td data-label='{columns[-1]}'>{chip}</td></tr>"


def failures_text(by_seed: Mapping[str, Mapping[str, float]]) -> str:
    """`all gates are near 1 (2 of 3 seeds)`; empty where no seed failed."""
    found: dict[str, int] = {}
    for metrics in by_seed.values():
        for failure in gate_failures(metrics):
            found[failure.short] = found.get(failure.short, 0) + 1
    return ", ".join(f"{short} ({count} of {len(by_seed)} seeds)" for short, count in found.items())


def _maps(entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], plots: dict[str, go.Figure]) -> str:
    parts, keys = [], ""
    for number, (entry, artefact) in enumerate(entries[:_MAX_MAPS]):
        data = GateData(artefact)
        found = class_map_of(data)
        if found is None:
            continue
        plots[f"map-{number}"] = map_figure(data, found, height=300)
        keys = keys or group_keys(data)
        title = f"{entry['arm']}: {found.explained:.0%} of the spread"
        parts.append(f"<div><h3>{escape(title)}</h3>{plot_box(f'map-{number}', plots)}</div>")
    if not parts:
        return ""
    text = "Classical scaling of the mean gate distances over seeds; turned and mirrored as it happens to come out."
    if len(entries) > _MAX_MAPS:
        text += f" The first {_MAX_MAPS} of {len(entries)} arms."
    return section("Maps of the classes", text, f'{keys}<div class="small">{"".join(parts)}</div>')
