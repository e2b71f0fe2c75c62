"""SIGTERM is a notice where something is at work: it is saved, and the end says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from simlap.record.journal import cell_storage, read_cell
from simlap.record.view import PREEMPTED
from simlap.run import preempt
from simlap.run.failures import classify
from simlap.run.task import STOP_REQUEST, CellTask
from simlap.run.worker import StopRequest, run_cell
from simlap.storage import Storage, StorageError
from simlap.train.check import check_experiment
from simlap.train.world import World
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    preempt._asked.clear()


def task(folder: Path) -> CellTask:
    (stage,) = check_experiment(tiny(), file="x")
    config = stage.experiment.model_dump(mode="json")
    return CellTask(stage.cell_id, config, Storage(folder).uri, {"data_fingerprint": stage.info.fingerprint})


def finish(made: CellTask) -> tuple[object, ...]:
    for _ in run_cell(made, World(), StopRequest(made, World())):
        pass
    result = cell_storage(Storage(made.storage), made.cell_id).read_json("result.json")
    return result["checkpoint"]["sha256"], result["evaluations"]


def test_a_notice_saves_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    made = task(tmp_path / "a")
    preempt.listen()

    class Noticed(StopRequest):
        calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            if self.calls == 13:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__()

    with preempt.AtWork():
        *_, last = run_cell(made, World(), Noticed(made, World()))
    assert last.stopped
    assert last.checkpoint is not None
    assert last.checkpoint.epoch == 1
    assert last.checkpoint.step > 0
    view = read_cell(Storage(made.storage), made.cell_id)
    assert (view.state, view.reason) == ("interrupted", PREEMPTED)
    assert classify(f"PreemptedError: {PREEMPTED}") == "lost", "tried again, not counted"
    preempt._asked.clear()
    assert finish(made) == finish(task(tmp_path / "b")), "it goes on to the same end"


def test_a_request_in_the_folder_says_why(tmp_path: Path) -> None:
    for asked, reason in ((b"", "asked to stop"), (PREEMPTED.encode(), PREEMPTED)):
        made = task(tmp_path / reason[:5])
        cell = cell_storage(Storage(made.storage), made.cell_id)
        cell.write(STOP_REQUEST, asked)
        *_, last = run_cell(made, World(), StopRequest(made, World(), every_s=0.0))
        assert last.stopped
        assert read_cell(Storage(made.storage), made.cell_id).reason == reason


def test_a_storage_that_is_away_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = StopRequest(task(tmp_path), World(), every_s=0.0)

    def away(storage: Storage, path: str) -> bytes:
        raise StorageError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(Storage, "read", away)
    assert not stop()
    assert "whether to stop is not known: AWS Error NETWORK_CONNECTION" in caplog.text


def test_without_work_it_is_what_it_was() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    preempt.listen()
    preempt.listen()  # again: it does not take itself for what was there before
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert not preempt.asked()


def test_without_work_or_handler_the_process_ends(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        preempt.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
