"""A study from the file to the answer, on a real local Ray and a real sqlite MLflow store."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.integration.studies import STUDY, Lab, mlflow_runs, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # Ray starts several times in one test


@pytest.fixture
def copy(undisturbed: Lab, tmp_path: Path) -> Lab:
    """The finished study in a folder of its own. The MLflow store stays behind: its artefacts have absolute paths."""
    shutil.copytree(undisturbed.folder / "runs", tmp_path / "runs")
    return Lab(tmp_path)


def test_everything_is_recorded(undisturbed: Lab) -> None:
    cells = undisturbed.cells()
    assert {key: (cell.state, cell.epoch) for key, cell in cells.items()} == {
        (f"filter={level}", seed): ("done", 30) for level in ("gumbel", "open") for seed in (0, 1)
    }
    runs = mlflow_runs(undisturbed)
    kinds = [run.data.tags["simlap.kind"] for run in runs]
    assert sorted(kinds) == ["arm"] * 2 + ["cell"] * 4 + ["study"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_cell = {run.data.tags["simlap.cell_id"]: run for run in runs if run.data.tags["simlap.kind"] == "cell"}
    for cell in cells.values():
        assert by_cell[cell.cell_id].data.metrics["test/probe_top1"] == cell.result["test/probe_top1"]
    for name in ("report.html", "report.md", "report.tex", "summary.json"):
        assert (undisturbed.folder / "runs/studies/small/report" / name).stat().st_size > 100


def test_again_runs_nothing(copy: Lab) -> None:
    files = {path: path.stat().st_mtime_ns for path in (copy.folder / "runs/cells").rglob("journal/*")}
    done = copy.ablate()
    assert done.returncode == 0
    assert "nothing to run" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (copy.folder / "runs/cells").rglob("journal/*")} == files


def test_a_new_level_runs_only_its_cells(copy: Lab, undisturbed: Lab) -> None:
    copy.write(STUDY.replace("[gumbel, open]", "[gumbel, open, product]"))
    assert copy.ablate().returncode == 0
    starts = copy.starts()
    assert starts == {key: [0] for key in starts}
    assert len(starts) == 6
    numbers = copy.numbers()
    assert {key: numbers[key] for key in undisturbed.numbers()} == undisturbed.numbers()


def test_the_finished_study_can_be_asked_about(copy: Lab) -> None:
    assert "0 of 4 cells to run" in copy.run("plan", "study.yaml").stdout
    assert "filter=open" in copy.run("status", "small").stdout
    assert copy.run("report", "study.yaml", "--format", "md").stdout.startswith("#")
    assert "\\toprule" in copy.run("report", "small", "--format", "latex").stdout
    synced = copy.run("sync", "small")
    assert synced.returncode == 0, synced.stderr
    assert len(mlflow_runs(copy)) == 1 + 2 + 4, "rebuilt from the journal alone"


def test_interrupted_and_killed_in_the_middle(tmp_path: Path, undisturbed: Lab) -> None:
    lab = Lab(tmp_path)
    going = lab.start("ablate", "study.yaml")
    plan = tmp_path / "runs/studies/small/plan.json"
    wait_for(lambda: plan.exists() and any(cell.epoch for cell in lab.cells().values()))
    os.kill(going.pid, signal.SIGINT)
    out, err = going.communicate(timeout=600)
    assert going.returncode == 130, (out, err)
    assert "continue with: simlap ablate study.yaml" in err
    assert not (tmp_path / "runs/studies/small/lease.json").exists()

    going = lab.start("ablate", "study.yaml")

    def in_the_middle() -> bool:
        cells = lab.cells().values()
        return any(cell.state == "done" for cell in cells) and any(
            cell.state == "running" and 3 <= cell.durable_epoch <= 6 for cell in cells
        )

    wait_for(in_the_middle)
    os.kill(going.pid, signal.SIGKILL)
    going.communicate()
    time.sleep(3)  # its actors live on for a moment
    before, before_starts = lab.cells(), lab.starts()
    done = lab.ablate()
    assert done.returncode == 0, done.stderr
    assert lab.numbers() == undisturbed.numbers(), "to the last digit"
    starts = lab.starts()
    for key, cell in before.items():
        if cell.state == "done":
            assert starts[key] == before_starts[key], "no finished cell runs twice"
        elif cell.durable_epoch:
            assert len(starts[key]) == len(before_starts[key]) + 1
            assert starts[key][-1] >= cell.durable_epoch, "it continues from its last epoch"
    assert any(starts[key][-1] >= 3 for key, cell in before.items() if cell.state != "done")
    runs = mlflow_runs(lab)
    assert len(runs) == 1 + 2 + 4, "one run per cell"


def test_a_failing_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    study = STUDY.replace(
        "filter: {path: method.gate.kind, levels: [gumbel, open]}", "lr: {path: optim.lr, levels: [0.01, 1e30]}"
    )
    lab = Lab(
        tmp_path,
        study.replace("filter: gumbel", "lr: 0.01").replace("epochs: 30", "epochs: 2"),
        optim={"name": "sgd", "lr": 0.01},
    )
    done = lab.ablate()
    assert done.returncode == 1
    assert done.stdout.count("DivergedError: train/") >= 2
    assert "2 failed cells" in done.stderr
    assert {key: cell.state for key, cell in lab.cells().items()} == {
        ("lr=0.01", 0): "done", ("lr=0.01", 1): "done", ("lr=1e+30", 0): "failed", ("lr=1e+30", 1): "failed",
    }  # fmt: skip
    assert "DivergedError" in (tmp_path / "runs/studies/small/report/report.html").read_text()


def test_cells_of_two_workers_with_asha(tmp_path: Path) -> None:
    """Worker groups fill the machine, ASHA ends some of them early, and the next ones still find room."""
    # a worker group goes on while the scheduler decides: enough epochs for the decision to reach it
    study = STUDY.replace("epochs: 30", "epochs: 20").replace("seeds: 2", "seeds: 1") + (
        "resources: {workers: 2}\n"
        "scheduler: {kind: asha, grace_epochs: 1, reduction_factor: 2}\n"
        # the first epoch's loss is highest for the baseline, which comes first: the others are stopped at the first rung
        "metric: {name: train/loss, mode: max}\n"
    )
    lab = Lab(tmp_path, study.replace("[gumbel, open]", "[gumbel, open, sigmoid]"))
    done = lab.ablate()
    assert done.returncode == 0, done.stderr
    cells = lab.cells()
    assert {name: cell.state for (name, _), cell in cells.items()} == {
        "filter=gumbel": "done", "filter=open": "stopped", "filter=sigmoid": "stopped",
    }  # fmt: skip
    for cell in cells.values():
        assert cell.provenance["world_size"] == 2
        assert cell.state == "done" or "at epoch 1 is not among the best" in (cell.reason or "")
