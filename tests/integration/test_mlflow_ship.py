"""The shipping process: from a real journal into a sqlite store, and into a server that is away at first."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from simlap.record.journal import Journal, read_study
from simlap.record.mlflow import needs_projection
from simlap.record.ship import BackgroundShipper, ship_once
from simlap.record.view import StudyView
from simlap.storage import Storage
from tests.integration.blank import blank_store
from tests.integration.mlflow_studies import study, train, write_checkpoints, write_plan
from tests.integration.servers import Server


def held(client: MlflowClient, view: StudyView) -> dict[str, list[tuple[int, int, float]]]:
    """Points of every cell's loss, by cell id. Raises KeyError where a cell has two runs or none."""
    experiment = client.get_experiment_by_name(view.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`simlap.kind` = 'cell'")
    points = {
        run.data.tags["simlap.cell_id"]: sorted(
            (m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")
        )
        for run in runs
    }
    assert len(points) == len(runs) == sum(len(arm.cells) for arm in view.arms)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return points


def journalled(storage: Storage, name: str) -> dict[str, list[tuple[int, int, float]]]:
    return {
        one.cell_id: [(row.epoch, row.time_ms, row.metrics["train/loss"]) for row in one.rows]
        for arm in read_study(storage, name).arms
        for one in arm.cells
    }


def wait_for(what: str, condition: Any, timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)


@pytest.mark.slow
def test_shipping_beside_a_study_and_again_without_work(tmp_path: Path) -> None:
    storage, view, uri = Storage(tmp_path / "runs"), study(levels=("on",), epochs=2), f"sqlite:///{tmp_path}/mlflow.db"
    write_plan(storage, view)
    journals: dict[str, Journal] = {}
    with BackgroundShipper(storage, view.name, uri) as shipper:
        train(storage, view, 1, journals)
        wait_for("the first epoch", lambda: list((tmp_path / "runs/studies/filter/mlflow").glob("*.json")))
        write_checkpoints(storage, view)
        train(storage, view, 2, journals)
        report = shipper.finish()
    assert (report.errors, report.runs, report.created) == ([], 5, 5)
    assert held(MlflowClient(uri), view) == journalled(storage, view.name)
    assert not needs_projection(read_study(storage, view.name), storage, uri)

    command = [sys.executable, "-m", "simlap.record.ship", "--storage", storage.uri, "--study", view.name]
    again = subprocess.run([*command, "--tracking-uri", uri], capture_output=True, text=True, check=True)
    assert again.stderr == ""
    (line,) = again.stdout.splitlines()
    assert (json.loads(line)["runs"], json.loads(line)["metrics"]) == (5, 0)


def test_a_study_that_is_not_there_is_reported_not_raised(tmp_path: Path) -> None:
    report = ship_once(Storage(tmp_path), "none", f"sqlite:///{tmp_path}/mlflow.db", attempts=1)
    assert "no such study" in report.errors[0]


@pytest.mark.slow
def test_the_process_ends_when_its_driver_is_killed(tmp_path: Path) -> None:
    write_plan(Storage(tmp_path), study(levels=("on",)))
    code = (
        "import time; from simlap.record.ship import BackgroundShipper; from simlap.storage import Storage;"
        f"s = BackgroundShipper(Storage({str(tmp_path)!r}), 'filter', 'sqlite:///{tmp_path}/mlflow.db');"
        "print(s._process.pid, flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.communicate()
    wait_for("the end of the shipping process", lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_a_server_that_is_away_loses_nothing(tmp_path: Path) -> None:
    """Away at first, and away again in the middle: in the end it holds exactly what the journal holds."""
    (tmp_path / "server.db").write_bytes(blank_store())
    server = Server(tmp_path, f"sqlite:///{tmp_path}/server.db")
    storage, view, uri = Storage(tmp_path / "runs"), study(levels=("on",), epochs=4), server.url
    write_plan(storage, view)
    journals: dict[str, Journal] = {}
    log = tmp_path / "runs/studies/filter/mlflow"
    shipper = BackgroundShipper(storage, view.name, uri)
    train(storage, view, 1, journals)
    wait_for("a logged failure", lambda: any(b"could not write" in file.read_bytes() for file in log.glob("*.log")))
    with server:
        train(storage, view, 2, journals)
        wait_for("the records", lambda: list(log.glob("*.json")))
    train(storage, view, 3, journals)
    write_checkpoints(storage, view)
    train(storage, view, 4, journals)
    started = time.monotonic()
    report = shipper.finish()
    assert report.errors
    assert time.monotonic() - started < 60
    assert needs_projection(read_study(storage, view.name), storage, uri)
    with server:
        report = ship_once(storage, view.name, uri)
        assert report.errors == []
        client = MlflowClient(uri)
        assert held(client, view) == journalled(storage, view.name)
        models = client.search_logged_models([report.experiment_id])
        assert [str(model.status) for model in models] == ["READY", "READY"]
        assert "report" not in {item.path for item in client.list_artifacts(report.run_id)}
