"""Train a finished run of a study anew, up to an epoch, and compare every number with the record.

It runs in this process and in a temporary folder, as a cell of one worker does in its actor; the study's own cells are only read.
"""

from __future__ import annotations

import math
import random
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from simlap.config import Experiment, validate, yaml
from simlap.errors import ConfigError, UserError
from simlap.record.code import code_of
from simlap.record.journal import cell_storage, now_ms, read_cell, read_result, read_rows, read_study, times_rerun
from simlap.record.provenance import collect
from simlap.record.replay import Difference, ReplayView, save_replay
from simlap.record.view import CellView, StudyView
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.study.scheduling import Chosen
from simlap.train.world import World

RELATIVE, ABSOLUTE = 0.05, 0.02
TOLERANCE = f"{RELATIVE:.0%} or {ABSOLUTE:g}, whichever is more"
DEFAULT_EPOCHS = 2
"""Where the study's scheduler has no rungs."""
_SHOWN = 20
"""So many differences are kept."""


@dataclass(frozen=True)
class Candidate:
    """A finished run."""

    line: str
    view: CellView
    experiment: Experiment


def verify(
    storage: Storage,
    name: str,
    *,
    cell_id: str | None = None,
    epochs: int | None = None,
    draw: int | None = None,
    on_start: Callable[[Candidate, int], None] = lambda candidate, epochs: None,
) -> ReplayView:
    """Replay a run, compare it with its record, and add the result to the study's `verify.json`.

    Args:
        storage: that holds `cells/` and `studies/`.
        name: of the study.
        cell_id: of the run (default: a random one of those that are finished).
        epochs: so many, at most all (default: up to the first rung of the study's scheduler, else two).
        draw: seed of the random choice (default: a random one, which is recorded).
        on_start: told of the run and its epochs before it is trained.

    Raises:
        UserError: nothing can be replayed.
    """
    study = read_study(storage, name)
    candidates = _finished(study)
    if cell_id is None:
        draw = secrets.randbelow(2**32) if draw is None else draw
        chosen, skipped = _choose(candidates, storage, draw, name)
    else:
        draw, skipped = None, []
        chosen = _named(study, candidates, cell_id)
        if reason := _obstacle(chosen, storage):
            raise UserError(f"run {cell_id} cannot be replayed: {reason}")
    epochs = min(_first_rung(study) if epochs is None else epochs, chosen.experiment.train.epochs)
    on_start(chosen, epochs)
    with tempfile.TemporaryDirectory(prefix="simlap-verify-") as scratch:
        replayed = _replay(chosen, storage, Storage(scratch), epochs)
    unlike = _unlike(chosen, storage, replayed, epochs)
    recorded = _values(chosen.view, epochs)
    found = compare(recorded, _values(replayed, epochs), exact=not unlike)
    replay = ReplayView(
        time_ms=now_ms(), cell_id=chosen.view.cell_id, line=chosen.line, seed=chosen.view.seed, epochs=epochs,
        values=len(recorded), verdict="different" if found else "equal", exact=not unlike, tolerance=TOLERANCE,
        unlike=unlike, different=len(found), differences=found[:_SHOWN], recorded_codes=chosen.view.codes,
        code=code_of(chosen.experiment), versions=collect()["packages"], draw=draw, skipped=skipped,
    )  # fmt: skip
    save_replay(storage.child("studies", name), replay)
    return replay


Values = dict[tuple[int, str], float]
"""By epoch and name."""


def compare(recorded: Values, replayed: Values, *, exact: bool) -> list[Difference]:
    """The recorded values that did not come out again, and the epochs that were trained and have no record."""
    found = [
        Difference(epoch, name, value, replayed.get((epoch, name)))
        for (epoch, name), value in recorded.items()
        if not _equal(value, replayed.get((epoch, name)), exact)
    ]
    known = {epoch for epoch, _ in recorded}
    # a protocol that was added to a finished run measures more along the way than the record has: only whole rows count
    found += [Difference(e, name, None, value) for (e, name), value in replayed.items() if e not in known]
    return sorted(found, key=lambda one: (one.epoch, one.name))


def _equal(recorded: float, replayed: float | None, exact: bool) -> bool:
    if replayed is None or exact:
        return recorded == replayed
    return math.isclose(recorded, replayed, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _values(view: CellView, epochs: int) -> Values:
    """What was measured up to an epoch; at the last one that is what stands in the result, too."""
    values = {
        (row.epoch, name): value
        for row in view.rows
        if row.epoch <= epochs
        for name, value in row.metrics.items()
        if not name.startswith("time/")
    }
    if epochs == view.config["train"]["epochs"]:
        values |= {(epochs, name): value for name, value in view.result.items()}
    return values


def _finished(study: StudyView) -> list[Candidate]:
    """All runs of the study that are done, each once, in an order that does not depend on how they came."""
    runs = {cell.cell_id: (arm.name, cell) for arm in study.arms for cell in arm.cells}
    runs |= {stage.cell.cell_id: (stage.name, stage.cell) for stage in study.stages}
    for search in study.searches:
        for trial in search.trials:
            line = f"search {search.name}, trial {trial.number}".replace("  ", " ")
            runs |= {cell.cell_id: (line, cell) for cell in trial.cells if cell.cell_id not in runs}
    return [
        Candidate(line, view, validate(Experiment, dict(view.config), file=f"cell {view.cell_id}"))
        for _, (line, view) in sorted(runs.items())
        if view.state == "done"
    ]


def _named(study: StudyView, candidates: list[Candidate], cell_id: str) -> Candidate:
    found = next((one for one in candidates if one.view.cell_id == cell_id), None)
    if found is None:
        raise ConfigError(
            f"is no finished run of study {study.name}", key="--cell", value=cell_id,
            choices=[one.view.cell_id for one in candidates[:10]],
        )  # fmt: skip
    return found


def _choose(candidates: list[Candidate], storage: Storage, draw: int, name: str) -> tuple[Candidate, list[str]]:
    """A random run that can be replayed, and why those that were drawn before it cannot."""
    if not candidates:
        raise UserError(f"study {name} has no finished run: there is nothing to replay")
    shuffled = random.Random(draw).sample(candidates, len(candidates))
    skipped: list[str] = []
    for one in shuffled:
        reason = _obstacle(one, storage)
        if reason is None:
            return one, skipped
        skipped.append(f"{one.line}, seed {one.view.seed} ({one.view.cell_id}): {reason}")
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    raise UserError(f"no finished run of study {name} can be replayed: {skipped[0]}{more}")


def _obstacle(one: Candidate, storage: Storage) -> str | None:
    """Why a run cannot be replayed here; None where it can."""
    if one.experiment.resources.workers > 1:
        return f"it was trained by {one.experiment.resources.workers} workers; only runs of one worker are replayed"
    start = one.view.start
    if start is None or start.startswith("weights:"):
        return None
    stage = cell_storage(storage, start)
    result = read_result(stage)
    if result is None or not stage.exists(f"{result['checkpoint']['path']}/manifest.json"):
        return f"the checkpoint of the stage that it started from ({start}) is not there"
    if times_rerun(stage) > one.view.provenance.get("start_rerun", 0):
        return f"the stage that it started from ({start}) has been run anew since"
    return None


def _replay(one: Candidate, storage: Storage, scratch: Storage, epochs: int) -> CellView:
    """Train it in the scratch storage. Raises UserError where its data or its weights are not what they were."""
    start = one.view.start
    if start is not None and not start.startswith("weights:"):
        _copy_stage(cell_storage(storage, start), cell_storage(scratch, start))
    config = dict(one.view.config)
    known = {k: v for k, v in one.view.provenance.items() if k == "data_fingerprint"}
    task = CellTask(one.view.cell_id, config, scratch.uri, {**collect(), **known}, start, until=epochs)
    gpu = one.experiment.resources.gpus > 0 and torch.cuda.is_available()
    for _ in run_cell(task, World(device=torch.device("cuda" if gpu else "cpu"))):
        pass
    replayed = read_cell(scratch, one.view.cell_id)
    return replace(replayed, config=dict(replayed.config))  # it is read when it is asked for, and the folder goes


def _copy_stage(stage: Storage, to: Storage) -> None:
    """What a run reads of the stage it starts from."""
    checkpoint = stage.read_json("result.json")["checkpoint"]["path"]
    for path in ("result.json", *(f"{checkpoint}/{name}" for name in stage.list(checkpoint))):
        to.write(path, stage.read(path))


def _unlike(one: Candidate, storage: Storage, replayed: CellView, epochs: int) -> list[str]:
    """What of the circumstances that numbers depend on, to the last bit, is other than for the record."""
    rows = read_rows(cell_storage(storage, one.view.cell_id))
    starts = [row["provenance"] for row in rows if row["type"] == "start" and row["from_epoch"] < epochs]
    now = {**dict(_circumstances(replayed.provenance)), "threads": torch.get_num_threads()}
    found: dict[str, None] = {}
    for provenance in starts or [one.view.provenance]:
        then = {**dict(_circumstances(provenance)), "threads": one.experiment.resources.cpus_per_worker}
        found |= {
            f"{what} {_word(now[what])}, then {_word(then[what])}": None for what in now if now[what] != then[what]
        }
    return list(found)


def _circumstances(provenance: dict[str, object]) -> Iterator[tuple[str, object]]:
    packages = provenance.get("packages")
    yield "device", provenance.get("device")
    yield "processor", provenance.get("processor")
    yield "torch", packages.get("torch") if isinstance(packages, dict) else None
    yield "workers", provenance.get("world_size")


def _word(value: object) -> str:
    return "unknown" if value is None else str(value)


def _first_rung(study: StudyView) -> int:
    """Of the scheduler that the study was last applied with."""
    tree = yaml.parse(study.text) if study.text else {}
    settings = {"scheduler": tree["scheduler"]} if "scheduler" in tree else {}
    rungs = validate(Chosen, settings, file=f"study {study.name}").scheduler.rungs(study.epochs)
    return rungs[0] if rungs else DEFAULT_EPOCHS
