"""Every number that a tracking store and the journals hold of a study, for comparison row by row."""

from __future__ import annotations

from collections import Counter

from mlflow import MlflowClient

from simlap.record.journal import read_study
from simlap.storage import Storage

Rows = dict[str, list[tuple[str, int, int, float]]]


def shipped(client: MlflowClient, study: str) -> Rows:
    """(metric, epoch, time, value) of every epoch, by cell. Raises AssertionError where a run is doubled."""
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    doubled = {name: times for name, times in Counter(run.info.run_name for run in runs).items() if times > 1}
    assert not doubled
    cells = [run for run in runs if run.data.tags["simlap.kind"] == "cell"]
    return {
        run.data.tags["simlap.cell_id"]: sorted(
            (point.key, point.step, point.timestamp, point.value)
            for key in run.data.metrics
            if not key.startswith(("final/", "test/"))
            for point in client.get_metric_history(run.info.run_id, key)
        )
        for run in cells
    }


def journalled(storage: Storage, study: str) -> Rows:
    """The same, of the journals."""
    return {
        cell.cell_id: sorted(
            (key, row.epoch, row.time_ms, value)
            for row in cell.rows
            for key, value in (row.metrics | row.system).items()
        )
        for arm in read_study(storage, study).arms
        for cell in arm.cells
    }
