"""Warm actors: which cells they run, and which of them Tune lets go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.run import worker
from simlap.run.device import DeviceMemoryError
from simlap.study.trainable import CellTrainable
from simlap.train.loop import Progress


def _config(number: int, storage: Path = Path("unused")) -> dict[str, Any]:
    task = {"cell_id": f"cell-{number}", "experiment": {}, "storage": str(storage)}
    return {"cell": {"task": task, "gpus": 0.0, "metric": "m", "last": None, "epochs": 1}}


class Recording(CellTrainable):
    """Says which process ran a cell. Cell 1 finds the GPU's memory full; nothing is really trained."""

    def _begin(self, config: dict[str, Any]) -> None:
        number = int(config["cell"]["task"]["cell_id"].removeprefix("cell-"))
        self._metric, self._last, self._end, self._cell_id = "m", None, 1, f"cell-{number}"

        def epochs() -> Generator[Progress]:
            Path(config["folder"], f"{number}-{os.getpid()}").touch()
            if number == 1:
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                except torch.OutOfMemoryError as error:
                    raise DeviceMemoryError("out of GPU memory") from error
            yield Progress(1, {"m": 0.5})
            yield Progress(1, {}, finished=True)

        self._epochs = epochs()


@pytest.mark.slow
def test_an_actor_that_ran_out_of_memory_is_not_used_again(tmp_path: Path) -> None:
    import ray
    from ray import tune

    from simlap.run.cluster import connect

    connect(None)
    try:
        configs = [_config(number)["cell"] for number in range(4)]
        found = tune.Tuner(
            tune.with_resources(Recording, {"cpu": 1}),
            param_space={"folder": str(tmp_path), "cell": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path / "tune"),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.shutdown()
    assert [bool(found[i].error) for i in range(4)] == [False, True, False, False]
    process = {int(number): pid for number, _, pid in (p.name.partition("-") for p in tmp_path.glob("*-*"))}
    assert process[0] == process[1], "it was warm"
    assert process[2] != process[1], "and is gone"
    assert process[2] == process[3]


def test_one_actor_runs_cell_after_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_cell(task: Any, world: Any, stop: Any) -> Generator[Progress]:
        ran.append(task.cell_id)
        yield Progress(1, {"m": 0.25})
        yield Progress(1, {}, finished=True)

    monkeypatch.setattr(worker, "run_cell", run_cell)
    actor = CellTrainable.__new__(CellTrainable)  # without Tune's own set-up
    actor.setup(_config(0))
    first = actor.step()
    assert actor.reset_config(_config(1))
    assert first == {"cell_id": "cell-0", "epoch": 1, "done": True, "m": 0.25}
    assert actor.step()["cell_id"] == "cell-1"
    assert ran == ["cell-0", "cell-1"]
    actor.cleanup()


def test_a_cell_that_pauses_ends_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_cell(task: Any, world: Any, stop: Any) -> Generator[Progress]:
        for epoch in range(1, task.until + 1):
            yield Progress(epoch, {"m": epoch / 4})
        yield Progress(task.until, {}, stopped=True)

    monkeypatch.setattr(worker, "run_cell", run_cell)
    config = _config(0)
    config["cell"]["epochs"] = 9
    config["cell"]["task"]["until"] = 2
    actor = CellTrainable.__new__(CellTrainable)
    actor.setup(config)
    assert actor.step() == {"cell_id": "cell-0", "epoch": 1, "done": False, "m": 0.25}
    assert actor.step() == {"cell_id": "cell-0", "epoch": 2, "done": True, "m": 0.5}


def test_the_cell_before_is_left_in_order(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What it still has to write is written before the next one begins; that it cannot be is not the next one's fault."""
    happened: list[str] = []

    def run_cell(task: Any, world: Any, stop: Any) -> Generator[Progress]:
        happened.append(f"{task.cell_id} begins")
        try:
            yield Progress(1, {"m": 0.25})
            yield Progress(2, {"m": 0.5})
        finally:
            happened.append(f"{task.cell_id} is left")
            if task.cell_id == "cell-1":
                raise OSError("the disk is full")

    monkeypatch.setattr(worker, "run_cell", run_cell)
    actor = CellTrainable.__new__(CellTrainable)
    actor.setup({"cell": {**_config(0)["cell"], "epochs": 9}})
    for number in (1, 2):
        actor.step()
        assert actor.reset_config({"cell": {**_config(number)["cell"], "epochs": 9}})
    actor.step()
    actor.cleanup()
    expected = [f"cell-{number} {what}" for number in range(3) for what in ("begins", "is left")]
    assert happened == expected
    assert "cell-1 could not be left in order" in caplog.text
    assert "the disk is full" in caplog.text


def test_a_launch_does_not_import_torch() -> None:
    """Seconds, and hundreds of MiB: who trains imports it."""
    code = "import sys, simlap.study.apply, simlap.study.execute, simlap.study.searching; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
