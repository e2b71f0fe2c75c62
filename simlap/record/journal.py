"""The journal of a run: immutable segments of JSON lines, and the views read from them. The truth; MLflow is a projection.

A run directory `cells/<cell id>/` holds `config.yaml`, `provenance.json`, `journal/<writer>-<attempt>-<seq>.jsonl`,
`checkpoints/`, `result.json`, and in `evaluations/<evaluation id>.json` what an evaluation gives besides numbers. A segment is
written once, before the checkpoint that covers it. Rows of epochs that a later attempt trained again (because no checkpoint
covered them) are superseded by it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from simlap.config import canonical_hash, evaluation_id, yaml
from simlap.config.schema import Evaluation
from simlap.errors import ConfigError
from simlap.record.attempts import codes_of, warnings_of
from simlap.record.kept import superseded
from simlap.record.replay import read_replay
from simlap.record.view import (
    ArmView,
    CellState,
    CellView,
    DecisionView,
    EpochRow,
    RaceView,
    SearchView,
    StageView,
    StudyView,
    TrialView,
    Unread,
)
from simlap.redact import hide_in_tree
from simlap.storage import Storage

SCHEMA_VERSION = 1
_SEGMENT = re.compile(r"^(?P<writer>.+)-(?P<attempt>\d{4})-(?P<seq>\d{5})\.jsonl$")
_LAST = 99_999
RERUN = "rerun.json"
"""In a run directory, where it was discarded before; it stays when the rest goes."""
_EVALUATIONS: TypeAdapter[tuple[Evaluation, ...]] = TypeAdapter(tuple[Evaluation, ...])
_CHECKPOINT = re.compile(r"^epoch-(\d{5})-")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def cell_storage(storage: Storage, cell_id: str) -> Storage:
    """The run directory of a cell."""
    return storage.child("cells", cell_id)


def times_rerun(cell: Storage) -> int:
    """How often a run was discarded and begun anew. MLflow then has a run for each time: what it was told stays told."""
    return int(cell.read_json(RERUN)["times"]) if cell.exists(RERUN) else 0


class Journal:
    """One attempt's writer. Every call publishes one segment."""

    def __init__(self, cell: Storage, *, writer: str, attempt: int) -> None:
        self.cell, self.writer, self.attempt = cell, writer, attempt
        self._sequence = 0

    def write(self, *rows: dict[str, Any]) -> None:
        """Publish rows as one immutable segment."""
        first = {"schema_version": SCHEMA_VERSION, "attempt": self.attempt}
        lines = [
            json.dumps({**(first if i == 0 else {}), "t": now_ms(), **row}, allow_nan=False)
            for i, row in enumerate(rows)
        ]
        name = f"journal/{self.writer}-{self.attempt:04d}-{self._sequence:05d}.jsonl"
        self.cell.write(name, ("\n".join(lines) + "\n").encode())
        self._sequence += 1

    def start(self, epoch: int, step: int, provenance: dict[str, Any], warnings: Sequence[str] = ()) -> None:
        """`warnings`: what the user is to see, such as a checkpoint that was passed over."""
        told = {"warnings": list(warnings)} if warnings else {}
        self.write({"type": "start", "from_epoch": epoch, "from_step": step, "provenance": provenance, **told})

    def warn(self, text: str, *, about: str) -> None:
        """Something the user is to see, which nothing stops for. `about`: the last word about a thing counts."""
        self.write({"type": "warning", "about": about, "warnings": [text]})

    def epoch(self, epoch: int, metrics: dict[str, float], system: dict[str, float] | None = None) -> None:
        """`system`: how busy the machine was; beside the metrics, since it is no part of the result."""
        self.write({"type": "metrics", "epoch": epoch, "metrics": metrics, **({"system": system} if system else {})})

    def end(self, state: CellState, epoch: int, *, reason: str | None = None, error: str | None = None) -> None:
        """The attempt is over: done, stopped (by a scheduler), interrupted (by the user) or failed. Nothing follows it."""
        reason, error = hide_in_tree([reason, error])
        self._sequence = _LAST
        self.write({"type": "end", "state": state, "epoch": epoch, "reason": reason, "error": error})


def end_for_worker(
    cell: Storage,
    config: dict[str, Any],
    state: CellState,
    *,
    attempt: int,
    epoch: int,
    reason: str,
    error: str | None = None,
) -> None:
    """The end of an attempt whose worker cannot write it (it was stopped from outside, or died).

    Args:
        cell: the run directory.
        config: the resolved experiment; a worker that died early may not have left it.
        state: how the attempt ended.
        attempt: the number that the worker was to take, as `next_attempt` said before it was launched.
        epoch: finished epochs.
        reason: in a line.
        error: in full.
    """
    if not cell.exists("config.yaml"):
        cell.write("config.yaml", yaml.dump(config).encode())
    newest = max(attempt, next_attempt(cell) - 1)
    Journal(cell, writer=f"driver.{os.getpid()}", attempt=newest).end(state, epoch, reason=reason, error=error)


def add_protocols(cell: Storage, protocols: list[dict[str, Any]]) -> None:
    """Add what a finished run has been evaluated with to the `evaluate` list of its config; the rest of it stays.

    Args:
        cell: the run directory.
        protocols: as the experiment has them; one of a kind that is there already replaces it.
    """
    config = yaml.parse(cell.read("config.yaml").decode())
    merged = list({protocol["kind"]: protocol for protocol in (*config["evaluate"], *protocols)}.values())
    if merged != config["evaluate"]:
        cell.write("config.yaml", yaml.dump({**config, "evaluate": merged}).encode())


def next_attempt(cell: Storage) -> int:
    """One more than the highest attempt that left a segment."""
    return max((int(m["attempt"]) for m in map(_SEGMENT.match, cell.list("journal")) if m), default=0) + 1


def read_rows(cell: Storage) -> list[dict[str, Any]]:
    """All rows of all segments in order of attempt and sequence, superseded or not."""
    rows = []
    for name in cell.list("journal"):
        if m := _SEGMENT.match(name):
            for line in cell.read(f"journal/{name}").decode().splitlines():
                row = {**json.loads(line), "attempt": int(m["attempt"])}
                # worker and driver may both end an attempt: the driver's word counts, which comes later (whatever clocks say),
                # except that what is done is done
                is_driver = m["writer"].startswith("driver.")
                last = (row.get("state") == "done", is_driver, row["t"]) if row["type"] == "end" else (False, False, 0)
                rows.append((int(m["attempt"]), int(m["seq"]), last, row))
    return [row for *_, row in sorted(rows, key=lambda entry: entry[:3])]


@dataclass(frozen=True)
class Progress:
    """How far a run is, by its journal and its result."""

    state: CellState
    rows: list[EpochRow] = field(default_factory=list)
    """One per finished epoch, in order, none twice."""
    reached: int = 0
    """Epochs that the newest attempt stands at."""
    reason: str | None = None
    error: str | None = None
    ended_ms: int | None = None
    result: dict[str, Any] | None = None
    """`result.json`."""

    def with_final(self, final: dict[str, float]) -> list[EpochRow]:
        """The rows; a protocol that came later was measured on the final checkpoint: it belongs to the last epoch."""
        if not (self.rows and self.result and self.rows[-1].epoch == self.result["epochs"]):
            return self.rows
        last = self.rows[-1]
        added = {name: value for name, value in final.items() if name not in last.metrics and "test/" not in name}
        return [*self.rows[:-1], EpochRow(last.epoch, last.time_ms, {**last.metrics, **added}, last.system)]


def read_progress(cell: Storage, rows: list[dict[str, Any]]) -> Progress:
    """Replay the rows of a journal (`read_rows`)."""
    if not rows:
        return Progress("new")
    epochs: dict[int, EpochRow] = {}
    reached = 0
    state: CellState = "running"
    reason = error = None
    ended: int | None = None
    for row in rows:
        match row["type"]:
            case "start":
                # later rows of earlier attempts no longer count, unless an attempt is found to have gone on from them
                reached = row["from_epoch"]
                state, reason, error, ended = "running", None, None, None
            case "metrics":
                reached = row["epoch"]
                epochs[reached] = EpochRow(reached, row["t"], row["metrics"], row.get("system", {}))
            case "end":
                state, reason, error, ended = row["state"], row.get("reason"), row.get("error"), row["t"]
    ordered = [epochs[epoch] for epoch in sorted(epochs) if epoch <= reached]
    result = read_result(cell)
    if state == "done" and result is None:
        state = "interrupted"
    return Progress(state, ordered, reached, reason, error, ended, result)


def read_cell(
    storage: Storage, cell_id: str, *, seed: int | None = None, evaluate: list[dict[str, Any]] | None = None
) -> CellView:
    """The view of one cell; state `new` where there is nothing.

    Args:
        storage: that holds `cells/`.
        cell_id: of the cell.
        seed: of the cell (default: its config says it).
        evaluate: the protocols whose results are wanted, as the experiment has them (default: the cell's own config's).
    """
    cell = cell_storage(storage, cell_id)
    rows = read_rows(cell)
    if not rows:
        return CellView(cell_id=cell_id, seed=seed or 0, state="new")
    config = Unread(lambda: cell.read("config.yaml"), lambda content: dict(yaml.parse(content.decode())))
    progress = read_progress(cell, rows)
    state, result = progress.state, progress.result
    final = _evaluated(result, config["evaluate"] if evaluate is None else evaluate) if result else {}
    return CellView(
        cell_id=cell_id,
        seed=config["seed"] if seed is None else seed,
        state=state,
        rows=progress.with_final(final),
        durable_epoch=_durable(cell, progress),
        result={k: v for k, v in final.items() if k.startswith("test/")} if state == "done" else {},
        error=progress.error,
        reason=progress.reason,
        started_ms=rows[0]["t"],
        # a clock that was set back in between makes no run end before it began
        ended_ms=None if progress.ended_ms is None else max(progress.ended_ms, rows[0]["t"]),
        config=config,
        provenance=cell.read_json("provenance.json") if cell.exists("provenance.json") else {},
        codes=codes_of(rows),
        warnings=warnings_of(rows),
    )


def read_track(storage: Storage, cell_id: str) -> tuple[list[EpochRow], int]:
    """The rows of a cell, and how many of its epochs are durable: a part of its view that is read in a fraction of the time."""
    cell = cell_storage(storage, cell_id)
    progress = read_progress(cell, read_rows(cell))
    return progress.rows, _durable(cell, progress)


def _durable(cell: Storage, progress: Progress) -> int:
    """Epochs that a checkpoint or an end covers."""
    if progress.state in ("done", "stopped"):
        return progress.reached
    covered = next(
        (
            int(m[1])
            for name in reversed(cell.list("checkpoints"))
            if (m := _CHECKPOINT.match(name)) and cell.exists(f"checkpoints/{name}/manifest.json")
        ),
        0,
    )
    return min(covered, progress.reached)


def _evaluated(result: dict[str, Any], evaluate: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the wanted protocols, among all that the final checkpoint was ever evaluated with."""
    metrics: dict[str, float] = {}
    for protocol in _EVALUATIONS.validate_json(json.dumps(evaluate)):
        metrics |= result["evaluations"].get(evaluation_id(protocol, result["checkpoint"]["sha256"]), {})
    return metrics


def read_result(cell: Storage) -> dict[str, Any] | None:
    """`result.json` of a finished run, or None."""
    try:
        result: dict[str, Any] = cell.read_json("result.json")
    except FileNotFoundError:
        return None
    return result


def read_race(study: Storage) -> RaceView | None:
    """How a study's race stands, as its last look left it; None where it has not begun."""
    try:
        found = study.read_json("race.json")
    except FileNotFoundError:
        return None
    arms = found["arms"]
    decided = {name: arm["decision"] for name, arm in arms.items() if arm["decision"] is not None}
    return RaceView(
        **{key: found[key] for key in ("against", "alpha", "margin", "looks", "over")},
        seeds={name: arm["seeds"] for name, arm in arms.items()},
        decisions={name: DecisionView(**decision) for name, decision in decided.items()},
    )


def read_gates(study: Storage) -> dict[str, Any]:
    """What `simlap gates` found about a study; empty where it was not asked."""
    try:
        found: dict[str, Any] = study.read_json("gates/summary.json")
    except FileNotFoundError:
        return {}
    return found


def read_study(storage: Storage, name: str) -> StudyView:
    """The view of a study: its plan, and every cell the plan names. Raises UserError where there is no such study."""
    study = storage.child("studies", name)
    try:
        plan = study.read_json("plan.json")
    except FileNotFoundError:
        raise ConfigError(
            "no such study", file=storage.describe("studies"), value=name, choices=storage.list("studies")
        ) from None
    arms = [
        ArmView(
            name=arm["name"],
            levels=arm["levels"],
            protected=arm["protected"],
            is_baseline=arm["baseline"],
            cells=[
                read_cell(storage, cell["cell_id"], seed=cell["seed"], evaluate=arm.get("evaluate"))
                for cell in arm["cells"]
            ]
            + _never_begun(name, arm["name"], plan),
            code=arm.get("code"),
        )
        for arm in plan["arms"]
    ]
    stages = [
        StageView(
            stage["name"], read_cell(storage, stage["cell_id"], seed=stage["seed"]), stage["used_by"], stage.get("code")
        )
        for stage in plan.get("stages", [])
    ]
    race = read_race(study) if plan["scheduler"] == "race" else None
    keys = ("metric", "mode", "report_metric", "epochs", "seeds", "factors", "scheduler", "claims", "validation")
    return StudyView(
        name=name, arms=arms, stages=stages, race=race,
        searches=[_search(storage, search) for search in plan.get("searches", [])],
        superseded=_superseded(storage, plan),
        compare=plan.get("compare", "common"), margin=plan.get("margin"), sampled=plan.get("sampled", {}),
        declared_late=plan.get("declared_late", []), replay=read_replay(study),
        gates=read_gates(study),
        **{key: plan[key] for key in (*keys, "command", "provenance", "text")},
    )  # fmt: skip


def _superseded(storage: Storage, plan: dict[str, Any]) -> dict[str, int]:
    if not plan.get("kept"):
        return {}
    now = {(arm["name"], cell["seed"]): cell.get("fingerprint") for arm in plan["arms"] for cell in arm["cells"]}
    return superseded(((arm["name"], arm["cells"]) for arm in plan["kept"]), now, set(storage.list("cells")))


def _search(storage: Storage, search: dict[str, Any]) -> SearchView:
    trials = [
        TrialView(
            trial["number"],
            trial["values"],
            [read_cell(storage, cell["cell_id"], seed=cell["seed"]) for cell in trial["cells"]],
            trial["reason"] if not trial["cells"] else None,
        )
        for trial in search["trials"]
    ]
    return SearchView(
        search["name"], trials, search["of"], search["arms"], search["best"], search["value"], search["failed"]
    )


def _never_begun(study: str, arm: str, plan: dict[str, Any]) -> list[CellView]:
    """The cells of an arm whose search found no values: failed, and they will never have ids of their own."""
    reason = next((s["failed"] for s in plan.get("searches", []) if s["failed"] and arm in s["arms"]), None)
    if reason is None:
        return []
    return [
        CellView(canonical_hash([study, arm, seed]), seed, "failed", reason=reason, error=reason)
        for seed in plan["seeds"]
    ]
