"""Writes planned runs into MLflow: the only module that talks to it.

Everything here may be repeated after a failure at any point. A run is looked up by its tags before it is created,
points keep their original times, files are sent again only when they changed: a lost reply never costs a number.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simlap.record.tracking.client import quiet_client
from simlap.record.tracking.cursor import Cursor, Entry
from simlap.record.tracking.models import ModelLogger
from simlap.record.tracking.names import Point, batches
from simlap.record.tracking.plan import run_key
from simlap.record.tracking.records import RunPlan
from simlap.record.tracking.uri import artifact_location
from simlap.storage import Storage

if TYPE_CHECKING:
    from mlflow.entities import Run

REJECTIONS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST")
"""Answers about one run; the next run may still succeed. Any other error is about the server and ends the round."""

OWN_TAGS = ("simlap.", "mlflow.note.content")
"""Tags that are taken away when they no longer apply. Others belong to MLflow or to the user."""


@dataclass
class Projected:
    """What one projection did."""

    experiment_id: str = ""
    run_id: str = ""
    """Of the study, or of the single run."""
    runs: int = 0
    """Runs that the store now holds."""
    created: int = 0
    metrics: int = 0
    """Points sent."""
    writes: int = 0
    """Requests that changed something."""
    errors: list[str] = field(default_factory=list)
    """Runs that the server rejected."""
    notes: list[str] = field(default_factory=list)
    """What cannot be recorded any more: models whose checkpoint is gone."""


class Writer:
    """Brings one experiment of a tracking store up to date. After an exception, throw it away and make a new one."""

    def __init__(
        self, storage: Storage, tracking_uri: str, experiment: str, cursor: Cursor, *, cell_id: str = ""
    ) -> None:
        """`cell_id`: look only for runs of this cell (an experiment of single runs may hold thousands)."""
        self.storage, self.tracking_uri, self.experiment, self.cursor = storage, tracking_uri, experiment, cursor
        self.client = quiet_client(tracking_uri)
        self.done = Projected()
        self._open_experiment()
        self._adopt(cell_id)
        self._models = ModelLogger(self.client, storage, cursor.experiment_id)

    def project(self, plans: list[RunPlan]) -> Projected:
        """Write what is missing. Raises what the client raises when the server is away, with the cursor saved."""
        from mlflow.exceptions import MlflowException

        self.done = done = Projected(experiment_id=self.cursor.experiment_id)
        try:
            for plan in plans:
                if self.cursor.is_current(plan):
                    continue
                try:
                    self._project(plan)
                except MlflowException as error:
                    if error.error_code not in REJECTIONS:
                        raise
                    done.errors.append(f"{plan.name}: {error.message}")
                self.cursor.save(self.storage, self.tracking_uri, at_most_every_s=1.0)
            for entry in self.cursor.removed(plans):
                self._log(entry.run_id, tags={"simlap.in_study": "false"})
                entry.removed = True
        finally:
            if done.writes:
                self.cursor.save(self.storage, self.tracking_uri)
        top = self.cursor.runs.get(plans[0].key)
        done.run_id = top.run_id if top else ""
        done.runs = sum(plan.key in self.cursor.runs for plan in plans)
        return done

    # --- what is there ---------------------------------------------------------------------------------------------

    def _open_experiment(self) -> None:
        found = self.client.get_experiment_by_name(self.experiment)
        self._experiment_tags = dict(found.tags) if found else {}
        if found is None:
            self.cursor.experiment_id = self.client.create_experiment(
                self.experiment,
                artifact_location=artifact_location(self.tracking_uri, self.experiment),
                tags={"mlflow.experimentKind": "custom_model_development"},  # else the page asks which kind it is
            )
            return
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.cursor.experiment_id = found.experiment_id

    def _adopt(self, cell_id: str) -> None:
        """Correct the cursor by the runs that are really there."""
        query = f"tags.`simlap.cell_id` = '{cell_id}'" if cell_id else "tags.`simlap.kind` != 'run'"
        found: dict[str, Run] = {}
        for run in sorted(self._search(query), key=lambda run: (run.info.start_time, run.info.run_id)):
            key = run_key(run.data.tags)
            if key is None:
                continue
            if key in found:  # two writers raced: the older run stays
                self._write(self.client.delete_run, run.info.run_id)
            else:
                found[key] = run
        entries: dict[str, Entry] = {}
        for key, run in found.items():
            known = self.cursor.runs.get(key)
            if known is not None and known.run_id == run.info.run_id:
                entries[key] = known
            else:
                removed = run.data.tags.get("simlap.in_study") == "false"
                entries[key] = Entry(run.info.run_id, history_unknown=True, removed=removed)
        self.cursor.runs = entries

    def _search(self, query: str) -> Iterable[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs([self.cursor.experiment_id], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    # --- one run ---------------------------------------------------------------------------------------------------

    def _project(self, plan: RunPlan) -> None:
        entry = self.cursor.runs.get(plan.key) or self._find(plan)
        tags = dict(plan.tags)
        if plan.parent is not None:
            tags["mlflow.parentRunId"] = self.cursor.runs[plan.parent].run_id
        if entry is None:
            entry = self._create(plan, tags)
            self._log(entry.run_id, _points(plan, entry, set()), plan.params)
            status = "RUNNING"
        elif entry.digest == plan.digest and not entry.history_unknown and not entry.removed:  # only epochs are new
            self._log(entry.run_id, _points(plan, entry, set()))
            status = plan.status
        else:
            status = self._update(plan, entry, tags)
        for key, value in plan.experiment_tags.items():
            if self._experiment_tags.get(key) != value:
                self._write(self.client.set_experiment_tag, self.cursor.experiment_id, key, value)
                self._experiment_tags[key] = value
        entry.epoch, entry.history_unknown, entry.removed = max(entry.epoch, plan.epoch), False, False
        self._attach(plan, entry)
        if plan.status != status:
            if plan.status == "RUNNING":
                self._write(self.client.update_run, entry.run_id, status="RUNNING")
            else:
                self._write(self.client.set_terminated, entry.run_id, plan.status, plan.end_ms)
        entry.digest = plan.digest

    def _find(self, plan: RunPlan) -> Entry | None:
        """A run that someone has created since the look-up: a process that was killed, or one on another machine."""
        query = f"tags.`simlap.kind` = '{plan.tags['simlap.kind']}'"
        if cell := plan.tags.get("simlap.cell_id"):
            query += f" and tags.`simlap.cell_id` = '{cell}'"
        runs = [run for run in self._search(query) if run_key(run.data.tags) == plan.key]
        if not runs:
            return None
        oldest = min(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        entry = self.cursor.runs[plan.key] = Entry(oldest.info.run_id, history_unknown=True)
        return entry

    def _create(self, plan: RunPlan, tags: dict[str, str]) -> Entry:
        start = plan.start_ms or int(time.time() * 1000)
        run = self._write(
            self.client.create_run, self.cursor.experiment_id, start_time=start, tags=tags, run_name=plan.name
        )
        self.done.created += 1
        entry = self.cursor.runs[plan.key] = Entry(run.info.run_id)
        return entry

    def _update(self, plan: RunPlan, entry: Entry, tags: dict[str, str]) -> str:
        """Bring a run that is already there to the plan by what it holds now. Returns its status."""
        entry.digest = ""
        run = self.client.get_run(entry.run_id)
        params = {key: value for key, value in plan.params.items() if key not in run.data.params}
        for key, value in plan.params.items():  # params are immutable: a changed one is told as a tag
            if run.data.params.get(key, value) != value:
                tags[f"simlap.changed.{key}"] = value
        held = self._history(plan, entry.run_id) if entry.history_unknown else set()
        points = [
            Point(key, value, int(time.time() * 1000) if key in run.data.metrics else plan.end_ms or 0, 0)
            for key, value in plan.single.items()
            if run.data.metrics.get(key) != value
        ]
        points += [point for point in plan.closing if run.data.metrics.get(point.key) != point.value]
        points += [point for point in plan.points(entry.epoch) if (point.key, point.step) not in held]
        self._log(entry.run_id, points, params, {k: v for k, v in tags.items() if run.data.tags.get(k) != v})
        for key in run.data.tags:
            if key.startswith(OWN_TAGS) and key not in tags:
                self._write(self.client.delete_tag, entry.run_id, key)
        if run.info.run_name != plan.name:
            self._write(self.client.update_run, entry.run_id, name=plan.name)
        if plan.status == run.info.status and plan.end_ms not in (None, run.info.end_time):
            self._write(self.client.set_terminated, entry.run_id, plan.status, plan.end_ms)
        return str(run.info.status)

    def _history(self, plan: RunPlan, run_id: str) -> set[tuple[str, int]]:
        """(metric, epoch) pairs that the store holds: asked only when the cursor was lost."""
        keys = {point.key for point in plan.points()}
        return {(key, metric.step) for key in keys for metric in self.client.get_metric_history(run_id, key)}

    def _attach(self, plan: RunPlan, entry: Entry) -> None:
        """Dataset, files and model: each once, or again when changed."""
        if plan.dataset is not None and entry.dataset != plan.dataset.digest:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(plan.dataset.name, plan.dataset.digest, plan.dataset.source_type, plan.dataset.source)
            tagged = DatasetInput(data, [InputTag("mlflow.data.context", "training")])
            self._write(self.client.log_inputs, entry.run_id, [tagged])
            entry.dataset = plan.dataset.digest
        stale = [artifact for artifact in plan.artifacts if entry.artifacts.get(artifact.path) != artifact.stamp]
        if stale:
            with tempfile.TemporaryDirectory(prefix="simlap-") as folder:
                for artifact in stale:
                    file = Path(folder, artifact.path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(artifact.content())
                self._write(self.client.log_artifacts, entry.run_id, folder)
            entry.artifacts |= {artifact.path: artifact.stamp for artifact in stale}
        if plan.model_of and entry.model in ("", "missing"):
            entry.model = self._models.log(plan, entry.run_id) or "missing"
            self.done.writes += 1
            if entry.model == "missing":
                self.done.notes.append(f"{plan.name}: no model logged, its final checkpoint is not in the storage")
                self._log(entry.run_id, tags={"simlap.model": "missing: the final checkpoint is not in the storage"})

    # --- requests --------------------------------------------------------------------------------------------------

    def _log(
        self,
        run_id: str,
        points: list[Point] | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for some, param, tag in batches(points or [], params or {}, tags or {}):
            self._write(
                self.client.log_batch,
                run_id,
                [Metric(point.key, point.value, point.time_ms, point.step) for point in some],
                [Param(key, value) for key, value in param.items()],
                [RunTag(key, value) for key, value in tag.items()],
            )
            self.done.metrics += len(some)

    def _write(self, request: Any, *arguments: Any, **named: Any) -> Any:
        answer = request(*arguments, **named)
        self.done.writes += 1
        return answer


def _points(plan: RunPlan, entry: Entry, held: set[tuple[str, int]]) -> list[Point]:
    """Epochs after the entry's; for a run that has none yet also the single and closing values."""
    points = [point for point in plan.points(entry.epoch) if (point.key, point.step) not in held]
    if not entry.digest:
        points += [Point(key, value, plan.end_ms or int(time.time() * 1000), 0) for key, value in plan.single.items()]
        points += plan.closing
    return points
