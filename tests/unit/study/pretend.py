"""Cells that look as if they had been run, without training: a thousandth of the time. And a launch that lost its study."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simlap.config import evaluation_id, yaml
from simlap.record.code import code_hash
from simlap.record.journal import Journal, cell_storage, next_attempt, read_result, times_rerun
from simlap.study.lease import Lease
from simlap.study.planned import PlannedCell

EPOCH_S = 0.5


def pretend(
    cell: PlannedCell,
    state: str = "done",
    epoch: int | None = None,
    *,
    code: str | None = None,
    values: Callable[[int], float] | None = None,
    value: float | None = None,
    gpus: float = 0.0,
) -> None:
    """Write what an attempt that came to this end leaves.

    Args:
        cell: as planned.
        state: how it ends; `running`: killed without a word.
        epoch: how far it comes (default: to the end where it is done, one epoch on elsewhere).
        code: hash of the code that ran it (default: today's).
        values: of the validation metric by epoch (default: one for all, by the cell's id).
        value: of every metric (default: a function of the cell's id).
        gpus: that it was given.
    """
    folder = cell_storage(cell.storage, cell.cell_id)
    total = cell.stage.experiment.train.epochs
    begun = min(cell.facts.epoch, total)
    epoch = epoch if epoch is not None else total if state == "done" else min(begun + 1, total)
    journal = Journal(folder, writer="pretend", attempt=next_attempt(folder))
    if not folder.exists("result.json"):
        folder.write("config.yaml", yaml.dump(cell.experiment.model_dump(mode="json")).encode())
        folder.write_json("provenance.json", {"code": code or code_hash(), "world_size": 1, "gpus_per_worker": gpus})
    value = value if value is not None else 0.9 + 0.001 * (int(cell.cell_id[:4], 16) % 20)
    rows = [
        {
            "type": "metrics",
            "epoch": e,
            "metrics": {"val/probe_top1": values(e) if values else value, "time/epoch_s": EPOCH_S},
        }
        for e in range(begun + 1, epoch + 1)
    ]
    provenance: dict[str, Any] = {"code": code or code_hash()}
    if cell.start is not None and not cell.start.startswith("weights:"):
        provenance["start_rerun"] = times_rerun(cell_storage(cell.storage, cell.start))
    journal.write({"type": "start", "from_epoch": begun, "from_step": 0, "provenance": provenance}, *rows)
    if state == "done":
        known = read_result(folder)
        evaluations = known["evaluations"] if known else {}
        for protocol in cell.experiment.evaluate:
            name = f"test/{protocol.kind}_top1"
            evaluations[evaluation_id(protocol, cell.cell_id)] = {name: value}
        folder.write_json(
            "result.json",
            {
                "epochs": total,
                "evaluations": evaluations,
                "checkpoint": {"path": f"checkpoints/{checkpoint_name(total)}", "sha256": cell.cell_id},
            },
        )
    if state == "interrupted":
        folder.write_json(f"checkpoints/{checkpoint_name(epoch)}/manifest.json", {})
    if state != "running":
        journal.end(state, epoch, reason="boom" if state == "failed" else None)  # type: ignore[arg-type]


def checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}-step-0000000-attempt-0001"


def silence(lease: Lease) -> None:
    """As after a SIGSTOP: it has not beaten for longer than another launch waits."""
    lease._stop.set()
    lease._thread.join()
    lease._beaten = -math.inf


def take_over(lease: Lease) -> None:
    """While it was silent, another launch came."""
    silence(lease)
    lease.study.write_json("lease.json", {"token": "other", "counter": 1, "host": "elsewhere", "pid": 7})
