"""A warm actor whose cells meet with the accidents that a file in the storage tells of."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import ray
import torch

from simlap.record.journal import cell_storage, next_attempt
from simlap.storage import Storage
from simlap.study.trainable import CellTrainable

ERRORS = {
    "user": ValueError("the shapes do not match"),
    "other": OSError("the disk is full"),
    "out_of_memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
}


class Faulty(CellTrainable):
    """In the epoch after its number's, an attempt's training raises or its process is killed.

    `faults.json` in the storage: cell id -> attempt -> kind. Every attempt leaves what Ray gave it: `given/<cell>-<attempt>`.
    """

    def _begin(self, config: dict[str, Any]) -> None:
        task = config["cell"]["task"]
        storage = Storage(task["storage"])
        attempt = next_attempt(cell_storage(storage, task["cell_id"]))
        self._at = attempt + 1  # a later attempt begins after what the one before it had finished
        self._fault = storage.read_json("faults.json").get(task["cell_id"], {}).get(str(attempt))
        given = ray.get_runtime_context().get_assigned_resources()
        storage.write(f"given/{task['cell_id']}-{attempt}", json.dumps(given).encode())
        super()._begin(config)
        print(f"attempt {attempt} begins")
        os.system("echo a child process prints")

    def _step(self) -> dict[str, Any]:
        result = super()._step()
        assert self._epochs is not None
        if self._fault and result["epoch"] == self._at:
            if self._fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            self._epochs.throw(ERRORS[self._fault])
        return result
