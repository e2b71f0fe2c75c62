"""A study as the journal would show it, or as it writes it, at any point of its life, without training anything."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from simlap.config import yaml
from simlap.config.identity import evaluation_id
from simlap.config.schema import Evaluation
from simlap.record.journal import Journal, cell_storage
from simlap.record.view import ArmView, CellState, CellView, EpochRow, StudyView
from simlap.storage import Storage

START = 1_700_000_000_000
"""First timestamp, in ms: long past, so that a record with the clock's time is noticed."""
SHAPES = (
    "train/loss",
    "train/nce",
    "train/probe_loss",
    "train/probe_top1",
    "train/lr",
    "val/probe_top1",
    "val/probe_loss",
)


EVALUATE = [{"kind": "probe", "every_epochs": 1}]
CHECKSUM = "ab" * 32


def row(cell: int, epoch: int, *, wide: bool = False) -> EpochRow:
    """Metrics of an epoch: different for every cell, epoch and name."""
    names = SHAPES + tuple(f"collapse/m{i}" for i in range(13)) if wide else SHAPES
    values = {name: (1 + i) / (epoch + 0.1 * cell + 1) for i, name in enumerate(names)}
    return EpochRow(epoch, START + cell * 60_000 + epoch * 1_000, values)


def cell(
    number: int, seed: int, levels: dict[str, str], *, epochs: int = 3, of: int = 3, state: CellState = "done",
    durable: int | None = None, wide: bool = False, **more: Any,
) -> CellView:  # fmt: skip
    cell_id = hashlib.sha256(f"{levels}{seed}".encode()).hexdigest()[:16]
    result = {"test/probe_top1": 0.9 - number / 100, "test/knn_top1": 0.8, "val/probe_top1": 0.7}
    config = {
        "name": "digits", "seed": seed, "data": {"source": "digits", "augment": {"crop_scale": [0.7, 1.0]}},
        "backbone": {"name": "conv3", "kwargs": {}}, "method": {"kind": "simlap", "gate": {"kind": levels["filter"]}},
        "train": {"epochs": of, "batch_size": 128}, "optim": {"lr": 0.003}, "resources": {"workers": 1},
        "evaluate": EVALUATE,
    }  # fmt: skip
    values: dict[str, Any] = {
        "rows": [row(number, epoch, wide=wide) for epoch in range(1, epochs + 1)],
        "durable_epoch": epochs if durable is None else durable,
        "result": result if state == "done" else {},
        "started_ms": None if state == "new" else START + number * 60_000,
        "ended_ms": START + number * 60_000 + epochs * 1_000 + 500 if state in ("done", "stopped", "failed") else None,
        "config": {} if state == "new" else config,
        "provenance": {"git": {"commit": "0123abc"}, "command": "simlap ablate x.yaml", "data_fingerprint": "fp" * 10},
    }
    return CellView(cell_id=cell_id, seed=seed, state=state, **values | more)


def study(
    *, name: str = "filter", levels: tuple[str, ...] = ("on", "off"), seeds: int = 1, epochs: int = 3,
    reached: int | None = None, states: dict[int, dict[str, Any]] | None = None, wide: bool = False,
) -> StudyView:  # fmt: skip
    """Every cell done, or at epoch `reached`; `states` overrides arguments of `cell` by cell number."""
    arms, number = [], 0
    usual: dict[str, Any] = {} if reached is None else {"epochs": reached, "state": "running" if reached else "new"}
    for filter_ in levels:
        for pairs in ("arbitrary", "distinct"):
            cells = []
            for seed in range(seeds):
                arguments = {"epochs": epochs, "of": epochs, "wide": wide} | usual | (states or {}).get(number, {})
                cells.append(cell(number, seed, {"filter": filter_, "pairs": pairs}, **arguments))
                number += 1
            arm_levels = {"filter": filter_, "pairs": pairs}
            arm = f"filter={filter_}, pairs={pairs}"
            arms.append(ArmView(arm, arm_levels, number <= seeds, number <= seeds, cells))
    return StudyView(
        name=name, metric="val/probe_top1", mode="max", report_metric="test/probe_top1", epochs=epochs,
        seeds=list(range(seeds)), factors={"filter": list(levels), "pairs": ["arbitrary", "distinct"]}, arms=arms,
        scheduler="asha", claims=["filter=off < filter=on by 0.05 at pairs=distinct"],
        command="simlap ablate ablations/filter.yaml", text="name: filter\n",
    )  # fmt: skip


def write_checkpoints(storage: Storage, view: StudyView, size: int = 1000) -> None:
    """`result.json` and the tensors of the final checkpoint of every finished cell."""
    for arm in view.arms:
        for one in arm.cells:
            if one.state == "done":
                path = f"checkpoints/epoch-{one.epoch:05d}-step-0000000-attempt-0001"
                storage.write(f"cells/{one.cell_id}/{path}/model.safetensors", bytes(size))
                (probe,) = TypeAdapter(tuple[Evaluation, ...]).validate_json(json.dumps(EVALUATE))
                result = {
                    "epochs": one.epoch, "checkpoint": {"path": path, "sha256": CHECKSUM},
                    "evaluations": {evaluation_id(probe, CHECKSUM): one.result},
                }  # fmt: skip
                storage.write_json(f"cells/{one.cell_id}/result.json", result)


def write_report(storage: Storage, view: StudyView, mean: float = 0.91) -> None:
    """The files that the study leaves when it has been analysed."""
    rows = "\n".join(f"| {arm.name} | {mean:.3f} ± 0.010 |" for arm in view.arms)
    arms = {
        arm.name: {"n": len(arm.cells), "mean": mean, "std": 0.01, "ci_low": mean - 0.01, "ci_high": mean + 0.01}
        for arm in view.arms
    }
    summary = {
        "schema_version": 1, "arms": arms, "metric": view.report_metric,
        "markdown": f"| arm | test/probe_top1 |\n|---|---|\n{rows}",
    }  # fmt: skip
    root = f"studies/{view.name}/report"
    storage.write(f"{root}/summary.json", json.dumps(summary).encode())
    storage.write(f"{root}/report.md", summary["markdown"].encode())  # type: ignore[attr-defined]
    storage.write(f"{root}/report.html", b"<html><body><h1>Report</h1></body></html>")


def write_plan(storage: Storage, view: StudyView) -> None:
    """`plan.json` and each cell's config: what a study leaves before its first epoch."""
    arms = [
        {"name": arm.name, "levels": arm.levels, "protected": arm.protected, "baseline": arm.is_baseline, "evaluate": EVALUATE,
         "cells": [{"cell_id": one.cell_id, "seed": one.seed} for one in arm.cells]}
        for arm in view.arms
    ]  # fmt: skip
    keys = ("metric", "mode", "report_metric", "epochs", "seeds", "factors", "scheduler", "claims", "validation")
    plan = {key: getattr(view, key) for key in (*keys, "command", "provenance", "text")}
    storage.write_json(f"studies/{view.name}/plan.json", {"schema_version": 1, **plan, "arms": arms})
    for arm in view.arms:
        for one in arm.cells:
            place = cell_storage(storage, one.cell_id)
            place.write("config.yaml", yaml.dump(one.config).encode())
            place.write_json("provenance.json", one.provenance)


def train(storage: Storage, view: StudyView, upto: int, journals: dict[str, Journal]) -> None:
    """Every cell journals its epochs up to one; with the last, it is done."""
    for one in (one for arm in view.arms for one in arm.cells):
        if one.cell_id not in journals:
            journals[one.cell_id] = Journal(cell_storage(storage, one.cell_id), writer="w", attempt=1)
            journals[one.cell_id].start(0, 0, {})
        for row in one.rows[:upto]:
            if row.epoch == upto:
                journals[one.cell_id].epoch(row.epoch, row.metrics)
                storage.write_json(f"cells/{one.cell_id}/checkpoints/epoch-{upto:05d}-s/manifest.json", {})
        if upto == len(one.rows):
            journals[one.cell_id].end("done", upto)
