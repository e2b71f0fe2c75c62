"""`simlap run` through Ray Train, stopped and continued."""

from __future__ import annotations

import contextlib
import os
import signal
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from simlap.record.journal import read_cell
from simlap.record.view import CellView
from tests.integration.studies import Lab, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # Ray starts several times in one test


def only_cell(lab: Lab) -> CellView:
    names = lab.storage.list("cells")
    assert len(names) <= 1
    return read_cell(lab.storage, names[0]) if names else CellView("", 0, "new")


def numbers(cell: CellView) -> list[dict[str, float]]:
    return [{k: v for k, v in row.metrics.items() if not k.startswith("time/")} for row in cell.rows]


def open_ports(pid: int) -> list[str]:
    """Processes of a launch that listen on more than the loopback interface, by their titles."""
    found = []
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            hosts = [ip_address(c.laddr.ip.removeprefix("::ffff:")) for c in listening]
            found += [process.cmdline()[0] for host in hosts if not host.is_loopback]
    return found


def test_stopped_by_ctrl_c_and_continued(tmp_path: Path, undisturbed: Lab) -> None:
    """The interrupted run ends as the same cell of an undisturbed study did, and is one MLflow run."""
    arguments = ("run", "base.yaml", "train.epochs=30", "checkpoint.every_epochs=7")
    # protocols are no part of what a run is: these make its epochs last long enough to be interrupted
    slowly = "evaluate=[{kind: probe}, {kind: knn}, {kind: collapse}, {kind: finetune, every_epochs: 1, epochs: 40}]"
    lab = Lab(tmp_path)
    going = lab.start(*arguments, slowly)
    wait_for(lambda: only_cell(lab).epoch >= 2)
    # torch's store of a worker group alone cannot be told where to listen
    assert [title for title in open_ports(going.pid) if not title.startswith("ray::RayTrainWorker")] == []
    os.kill(going.pid, signal.SIGINT)
    out, err = going.communicate(timeout=600)
    assert going.returncode == 130, (out, err)
    assert "continue with: simlap run base.yaml" in err
    assert "--resume" in err
    stopped = only_cell(lab)
    assert stopped.state == "interrupted"
    assert 2 <= stopped.epoch < 30

    done = lab.run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no noise"
    assert "test/probe_top1" in done.stdout
    assert "MLflow         simlap ui tiny" in done.stdout
    pages = lab.folder / "runs/cells" / only_cell(lab).cell_id / "evaluations"
    assert f"collapse       {pages}/collapse.html" in done.stdout, "30 epochs have measured it"
    assert (pages / "collapse.html").exists()

    whole = undisturbed.cells()["filter=gumbel", 0]
    assert only_cell(lab).cell_id == whole.cell_id
    rows = [
        {name: row[name] for name in expected}
        for row, expected in zip(numbers(only_cell(lab)), numbers(whole), strict=True)
    ]
    assert rows == numbers(whole), "bit for bit, from the middle of an epoch"
    assert only_cell(lab).result == whole.result

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/probe_top1")] == list(range(1, 31))
