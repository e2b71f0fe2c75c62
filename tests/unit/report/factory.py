"""A synthetic study: filter on/off x pairs, five seeds, with stopped, failed and running cells."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from simlap.record.view import ArmView, CellState, CellView, EpochRow, StudyView

SEEDS = [0, 1, 2, 3, 4]
EPOCHS = 15
FACTORS = {"filter": ["on", "off"], "pairs": ["arbitrary", "identical", "distinct"]}
_LEVEL = {"arbitrary": 0.955, "identical": 0.95, "distinct": 0.93}


def cell(arm: str, seed: int, top: float, epochs: int = EPOCHS, state: CellState = "done", **fields: Any) -> CellView:
    """A cell whose validation accuracy climbs to about `top`; a done cell's test accuracy is near it too."""
    noise = np.random.default_rng([seed, len(arm), sum(map(ord, arm))])
    shared = 0.006 * np.random.default_rng(seed).standard_normal()  # what the arms of a seed have in common
    rows = []
    for epoch in range(1, epochs + 1):
        value = (top + shared) * (1 - 0.55 * math.exp(-epoch / 2.5)) + 0.004 * noise.standard_normal()
        metrics = {
            "val/probe_top1": float(value),
            "train/loss": 2.0 * math.exp(-epoch / 6),
            "collapse/effective_rank": 20 + 4 * epoch * top,
            "gate/mean": 0.5 + 0.01 * epoch,
            "gate/entropy": 0.69 * math.exp(-epoch / 30),
            "time/epoch_s": 1.5,
        }
        rows.append(EpochRow(epoch, 1_700_000_000_000 + 1500 * epoch, metrics))
    result = {"test/probe_top1": float(top + shared + 0.004 * noise.standard_normal())} if state == "done" else {}
    return CellView(f"{arm}-{seed}", seed, state, rows, epochs, result, **fields)


def study(**changes: Any) -> StudyView:
    """Every cell done."""
    arms = []
    for on, pairs in itertools.product(*FACTORS.values()):
        name = f"filter={on},pairs={pairs}"
        top = _LEVEL[pairs] - (0.075 if on == "off" and pairs != "identical" else 0.0)
        cells = [cell(name, seed, top) for seed in SEEDS]
        first = on == "on" and pairs == "arbitrary"
        arms.append(ArmView(name, {"filter": on, "pairs": pairs}, first, first, cells))
    base = StudyView(
        name="filter",
        metric="val/probe_top1",
        mode="max",
        report_metric="test/probe_top1",
        epochs=EPOCHS,
        seeds=list(SEEDS),
        factors=FACTORS,
        arms=arms,
        scheduler="asha",
        claims=["filter=off < filter=on by 0.01 at pairs=arbitrary, p < 0.05"],
        command="simlap ablate ablations/filter.yaml",
        provenance={
            "git": {"commit": "0123abc", "dirty": False},
            "packages": {"torch": "2.15.0", "ray": "2.60.0"},
            "data": {"fingerprint": "digits-1f2e3d"},
            "devices": ["cpu"],
        },
        text="name: filter\nfactors:\n  filter: {path: method.gate, levels: {on: {kind: sigmoid}, off: {kind: open}}}\n",
    )
    return replace(base, **changes)


def with_cells(view: StudyView, arm: str, cells: dict[int, CellView]) -> StudyView:
    """The study with the cells of these seeds of an arm replaced."""
    arms = [replace(a, cells=[cells.get(c.seed, c) for c in a.cells]) if a.name == arm else a for a in view.arms]
    return replace(view, arms=arms)


def stop(view: StudyView, arm: str, epochs: dict[int, int], state: CellState = "stopped", **fields: Any) -> StudyView:
    """The study with cells of an arm cut off after these epochs, by seed."""
    old = {c.seed: c for a in view.arms if a.name == arm for c in a.cells}
    cut = {
        seed: replace(old[seed], rows=old[seed].rows[:epoch], state=state, result={}, durable_epoch=epoch, **fields)
        for seed, epoch in epochs.items()
    }
    return with_cells(view, arm, cut)


def mixed() -> StudyView:
    """One arm stopped at epochs 5 and 8, one with a failed cell, one with a running cell."""
    view = stop(study(), "filter=off,pairs=distinct", {0: 5, 1: 5, 2: 8, 3: 5, 4: 8}, reason="asha")
    error = 'Traceback (most recent call last):\n  File "loop.py", line 7\nRuntimeError: loss is <nan> & not finite'
    view = stop(view, "filter=off,pairs=arbitrary", {3: 9}, "failed", error=error)
    return stop(view, "filter=on,pairs=identical", {4: 11}, "running")
