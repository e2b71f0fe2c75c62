"""What a process may take of its machine. CUDA's own call is replaced: what is tested is when it is made, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
import torch

from simlap.record.journal import read_cell
from simlap.run import device, worker
from simlap.run.device import DeviceMemoryError, HostMemoryError, explain_out_of_memory, set_memory_share, set_threads
from simlap.run.failures import classify
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.check import check_experiment
from simlap.train.loop import Progress
from simlap.train.world import World
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("SIMLAP_CACHE", str(tmp_path / "cache"))
    cpus = pyarrow.cpu_count()
    yield
    pyarrow.set_cpu_count(cpus)


@pytest.fixture(name="caps")
def _caps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """The caps that were set, with the GPU they were set for."""
    caps: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: caps.append((share, index)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return caps


def test_a_share_of_a_gpu_is_a_share_of_its_memory(caps: list[tuple[float, int]]) -> None:
    set_memory_share(torch.device("cuda"), 0.25)
    set_memory_share(torch.device("cuda", 1), 0.5)
    set_memory_share(torch.device("cpu"), 0.5)
    assert caps == [(0.25, 0), (0.5, 1)]


def test_a_warm_process_gets_the_whole_gpu_back(caps: list[tuple[float, int]]) -> None:
    for gpus in (0.25, 1.0, 2.0):
        set_memory_share(torch.device("cuda"), gpus)
    assert caps == [(0.25, 0), (1.0, 0), (1.0, 0)]
    assert all(isinstance(share, float) for share, _ in caps)


def test_threads_of_a_process_that_had_others() -> None:
    for cpus in (3, 1, 2):
        set_threads(cpus)
        assert torch.get_num_threads() == pyarrow.cpu_count() == cpus


def _task(folder: Path, **changes: Any) -> CellTask:
    (stage,) = check_experiment(tiny(train__epochs=1, data__fraction=0.3, **changes), file="x")
    provenance = {"data_fingerprint": stage.info.fingerprint}
    config = stage.experiment.model_dump(mode="json")
    return CellTask(stage.cell_id, config, str(folder), provenance, stage.start)


def test_every_cell_of_a_warm_process_sets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    shares: list[float] = []

    def fit(*_: Any, **__: Any) -> Iterator[Progress]:
        seen.append((torch.get_num_threads(), pyarrow.cpu_count()))
        yield Progress(0, {}, stopped=True)

    monkeypatch.setattr(worker, "fit", fit)
    monkeypatch.setattr(worker, "set_memory_share", lambda _, gpus: shares.append(gpus))
    for seed, (cpus, gpus) in enumerate(((2, 0.5), (1, 1.0), (3, 0.0))):
        resources = {"cpus_per_worker": cpus, "gpus_per_worker": gpus}
        list(run_cell(_task(tmp_path, seed=seed, resources=resources, train__precision="fp32"), World()))
    assert shares == [0.5, 1.0, 0.0]
    assert seen == [(2, 2), (1, 1), (3, 3)]


def test_out_of_memory_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "total_memory", lambda _: 80_000_000_000)
    gpu = torch.device("cuda", 0)
    shared = explain_out_of_memory(tiny(resources__gpus_per_worker=0.25), gpu, 1)
    for part in (
        "0.25 of it, 20.0 GB", "resources.gpus_per_worker (now 0.25)", "lower train.batch_size",
        "train.micro_batch_size (now all 128 rows of a worker at once)",
    ):  # fmt: skip
        assert part in str(shared)
    whole = tiny(resources__gpus_per_worker=1, train__micro_batch_size=32)
    text = str(explain_out_of_memory(whole, gpu, 2))
    assert "all of it, 80.0 GB" in text
    assert "(now 32)" in text
    assert "gpus_per_worker" not in text, "it has the GPU to itself"
    smallest = tiny(resources__gpus_per_worker=1, train__micro_batch_size=1)
    assert "micro_batch_size" not in str(explain_out_of_memory(smallest, gpu, 1))
    assert "64 rows" in str(explain_out_of_memory(tiny(resources__gpus_per_worker=1), gpu, 2))


def test_a_cell_that_runs_out_of_memory_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(worker, "fit", full)
    task = _task(tmp_path, resources={"gpus_per_worker": 0.25}, train__precision="fp32")
    with pytest.raises(DeviceMemoryError, match=r"may use 0\.25 of it") as caught:
        list(run_cell(task, World()))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    view = read_cell(Storage(tmp_path), task.cell_id)
    assert view.state == "failed"
    assert (view.reason or "").startswith("DeviceMemoryError: out of GPU memory")
    assert "Tried to allocate 2.00 GiB" in (view.error or ""), "CUDA's own words are kept"


@pytest.mark.parametrize("kind", ["torch", "python", "numpy"])
def test_the_machine_is_out_of_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        match kind:
            case "torch":
                torch.empty(1 << 50, dtype=torch.uint8)
            case "numpy":
                numpy.empty(1 << 50, dtype=numpy.uint8)
            case _:
                bytes(1 << 50)

    monkeypatch.setattr(worker, "fit", full)
    task = _task(tmp_path)
    with pytest.raises(HostMemoryError, match=r"resources\.cpus_per_worker \(now 1\)") as caught:
        list(run_cell(task, World()))
    assert "train.micro_batch_size (now all 128 rows" in str(caught.value)
    assert "data.streaming" in str(caught.value)
    view = read_cell(Storage(tmp_path), task.cell_id)
    assert view.state == "failed"
    assert (view.reason or "").startswith("HostMemoryError: the machine is out of memory")
    assert classify(view.reason, view.error) == "out_of_memory"
    assert "Traceback" in (view.error or ""), "where it was is kept"
