"""Projection of a study, or of a single run, into MLflow. May be called again and again while it grows.

mlflow is imported only when there is something to write: `needs_projection` answers without it.
"""

from __future__ import annotations

from simlap.record.journal import read_cell, read_study
from simlap.record.tracking.cursor import Cursor, run_cursor, study_cursor
from simlap.record.tracking.lock import projection_lock
from simlap.record.tracking.plan import plan_run, plan_study
from simlap.record.tracking.records import RunPlan
from simlap.record.tracking.uri import holds_runs, resolve_tracking_uri, run_link, study_link
from simlap.record.tracking.writer import Projected, Writer
from simlap.record.view import CellView, StudyView
from simlap.storage import Storage

__all__ = [
    "Projected",
    "StudyProjector",
    "needs_projection",
    "project_run",
    "project_study",
    "read_report",
    "resolve_tracking_uri",
    "run_link",
    "study_link",
]


class StudyProjector:
    """Projects one study repeatedly: what MLflow holds is looked up once, later calls send only what is new."""

    def __init__(self, storage: Storage, tracking_uri: str, study: str) -> None:
        self.storage, self.tracking_uri, self.study = storage, tracking_uri, study
        self.cursor = study_cursor(storage, study, tracking_uri)
        self._writer: Writer | None = None

    def plans(self, study: StudyView) -> list[RunPlan]:
        return plan_study(study, read_report(self.storage, study.name), self.storage.describe)

    def project(self, study: StudyView | None = None) -> Projected:
        """Write what is missing of a study, by default as its journal is now, while no other process writes it.

        Raises what the MLflow client raises when the server is away; call it again then. TimeoutError: another
        process is writing.
        """
        with projection_lock(self.storage, self.cursor.path):
            if self.cursor.refresh(self.storage):  # another process wrote: what was looked up no longer holds
                self._writer = None
            # read inside the lock: an older view must not be written over a newer one
            return self._project(study or read_study(self.storage, self.study))

    def _project(self, study: StudyView) -> Projected:
        plans = self.plans(study)
        if not self.cursor.behind(plans, self.tracking_uri):
            return _nothing_to_do(self.cursor, plans)
        writer, self._writer = self._writer, None  # after an error the next call looks everything up again
        if writer is None or not holds_runs(self.tracking_uri, (e.run_id for e in self.cursor.runs.values())):
            writer = Writer(self.storage, self.tracking_uri, study.name, self.cursor)
        done = writer.project(plans)
        if not done.errors:
            self._writer = writer
        return done


def project_study(study: StudyView, storage: Storage, tracking_uri: str) -> Projected:
    """Bring MLflow up to date with a study. Idempotent: one run per study, arm and cell, whatever happened before."""
    return StudyProjector(storage, tracking_uri, study.name).project(study)


def needs_projection(study: StudyView, storage: Storage, tracking_uri: str) -> bool:
    """Whether MLflow lacks anything of this study, judged without importing mlflow."""
    plans = plan_study(study, read_report(storage, study.name), storage.describe)
    return study_cursor(storage, study.name, tracking_uri).behind(plans, tracking_uri)


def project_run(cell: CellView, experiment_name: str, storage: Storage, tracking_uri: str) -> Projected:
    """Bring MLflow up to date with a single run: one top-level run per cell in the experiment."""
    cursor = run_cursor(storage, cell.cell_id, experiment_name, tracking_uri)
    with projection_lock(storage, cursor.path):
        cursor.refresh(storage)
        journalled = read_cell(storage, cell.cell_id)  # may have grown while another process wrote
        plans = [plan_run(journalled if journalled.epoch > cell.epoch else cell, storage.describe)]
        if not cursor.behind(plans, tracking_uri):
            return _nothing_to_do(cursor, plans)
        return Writer(storage, tracking_uri, experiment_name, cursor, cell_id=cell.cell_id).project(plans)


def read_report(storage: Storage, study: str) -> dict[str, bytes]:
    """Files of a study's report by their path inside it; empty where there is no report yet."""
    root = f"studies/{study}/report"
    files: dict[str, bytes] = {}
    waiting = storage.list(root)
    while waiting:
        path = waiting.pop()
        try:
            children = storage.list(f"{root}/{path}")
        except NotADirectoryError:
            children = []
        if children:
            waiting += [f"{path}/{child}" for child in children]
        else:
            files[path] = storage.read(f"{root}/{path}")
    return files


def _nothing_to_do(cursor: Cursor, plans: list[RunPlan]) -> Projected:
    return Projected(experiment_id=cursor.experiment_id, run_id=cursor.runs[plans[0].key].run_id, runs=len(plans))
