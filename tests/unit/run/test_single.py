"""A run that loses a worker or a node goes on; one that fails by itself does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simlap.record.journal import Journal, cell_storage, next_attempt
from simlap.record.view import CellView
from simlap.run import elastic, single
from simlap.run.cluster import Node
from simlap.run.single import PreparedRun, execute
from simlap.run.task import GROWS, CellTask
from simlap.storage import Storage
from tests.tiny import tiny

LOST = "The actor died unexpectedly. Worker exit type: SYSTEM_ERROR"


class Runs:
    """A run whose attempts are made up: each leaves what its function writes."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        attempts: list[Callable[[Journal], None]],
        **settings: Any,
    ) -> None:
        experiment = tiny(train__epochs=3, **settings)
        storage = Storage(folder)
        task = CellTask("abcdefgh", experiment.model_dump(mode="json"), storage.uri)
        view = CellView("abcdefgh", 0, "new")
        self.run = PreparedRun(experiment, task, storage, view)
        self.left, self.told, self.asked = attempts, list[str](), list[str]()
        self.nodes = [[Node(4.0, 0.0)]]
        """At each look, the last one from then on."""
        self.workers: list[int] = []
        """Of each attempt."""
        self.more = [0]
        """So many more there was room for while each attempt ran."""
        monkeypatch.setattr(single, "connect", lambda address, **_: [Node(4.0, 0.0)])
        monkeypatch.setattr(single, "agree", lambda address, storage: self.asked.append(address))
        monkeypatch.setattr(single, "alive_nodes", self._alive)
        monkeypatch.setattr(elastic, "alive_nodes", self._alive)
        monkeypatch.setattr(single, "SETTLE_S", 0.0)
        monkeypatch.setattr(single, "_attempt", self._attempt)
        monkeypatch.setattr(single, "POLL_S", 0.01)

    def execute(self, address: str | None = None) -> CellView:
        return execute(self.run, file="x.yaml", address=address, on_epoch=lambda row: None, tell=self.told.append)

    def _attempt(
        self, run: PreparedRun, seen: int, on_epoch: object, workers: int, sound: object
    ) -> tuple[CellView, int, bool, int]:
        self.workers.append(workers)
        folder = cell_storage(run.storage, run.task.cell_id)
        folder.write("config.yaml", b"seed: 0\nevaluate: []\n")
        self.left.pop(0)(Journal(folder, writer="w", attempt=next_attempt(folder)))
        return run.read(), seen, False, self.more.pop(0) if len(self.more) > 1 else self.more[0]

    def _alive(self) -> list[Node]:
        return self.nodes.pop(0) if len(self.nodes) > 1 else self.nodes[0]


def lost_after(epochs: int, reason: str = LOST, start: int = 0) -> Callable[[Journal], None]:
    def attempt(journal: Journal) -> None:
        journal.start(start, 0, {})
        for epoch in range(start, epochs):
            journal.epoch(epoch + 1, {})
            journal.cell.write_json(f"checkpoints/epoch-{epoch + 1:05d}-s/manifest.json", {})
        journal.end("failed", epochs, reason=reason, error=reason)

    return attempt


def stopped_after(epochs: int, start: int) -> Callable[[Journal], None]:
    def attempt(journal: Journal) -> None:
        journal.start(start, 0, {})
        for epoch in range(start, epochs):
            journal.epoch(epoch + 1, {})
        journal.end("interrupted", epochs, reason=GROWS)

    return attempt


def done(journal: Journal) -> None:
    journal.start(2, 0, {})
    journal.cell.write_json("result.json", {"epochs": 3, "evaluations": {}, "checkpoint": {"sha256": ""}})
    journal.end("done", 3)


def test_a_lost_worker_is_told_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, monkeypatch, [lost_after(2), done])
    assert runs.execute("10.0.0.1:6379").state == "done"
    assert runs.told == ["lost after epoch 2: The actor died unexpectedly; going on from epoch 2"]
    assert runs.asked == ["10.0.0.1:6379"] * 2, "the nodes are asked anew: one may have come since"
    assert runs.left == []


def test_it_waits_for_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, monkeypatch, [lost_after(2), done])
    runs.nodes = [[], [], [Node(1.0, 0.0)]]
    assert runs.execute().state == "done"
    assert len(runs.told) == 3
    assert runs.told[1].startswith("waiting for nodes: x.yaml: resources.workers: 1 workers of 1 CPUs and 0 GPUs")
    assert runs.told[2] == "there is room again, after 0 s"
    assert runs.asked == []


def test_ctrl_c_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[Node]:
        raise KeyboardInterrupt

    runs = Runs(tmp_path, monkeypatch, [lost_after(2)])
    monkeypatch.setattr(single, "alive_nodes", interrupt)
    view = runs.execute()
    assert (view.state, view.reason, view.epoch) == ("interrupted", "asked to stop", 2)


@pytest.mark.parametrize("reason", ["ValueError: shapes do not match", "RuntimeError: what nobody foresaw"])
def test_what_fails_by_itself_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    runs = Runs(tmp_path, monkeypatch, [lost_after(1, reason), done])
    assert runs.execute().state == "failed"
    assert runs.told == []
    assert len(runs.left) == 1


def test_losses_without_an_epoch_in_between_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, monkeypatch, [lost_after(1), *[lost_after(1, start=1)] * 100])
    assert runs.execute().state == "failed"
    assert len(runs.told) == 20


def test_fewer_workers_where_no_room_is_left_and_all_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [lost_after(1), stopped_after(2, 1), done]
    runs = Runs(tmp_path, monkeypatch, attempts, resources__workers=4, resources__min_workers=2)
    runs.nodes = [[Node(4.0, 0.0)], [Node(1.0, 0.0)], [Node(3.0, 0.0)]]
    runs.more = [0, 1, 0]
    assert runs.execute().state == "done"
    assert runs.workers == [4, 3, 4]
    assert runs.told[0].startswith("lost after epoch 1: ")
    assert runs.told[1].startswith("waiting for nodes: x.yaml: resources.min_workers: 2 workers of 1 CPUs")
    assert runs.told[2:] == [
        "there is room again, after 0 s",
        "going on with 3 of 4 workers",
        "stopped after epoch 2 to go on with 4 of 4 workers",
    ]


def test_a_run_that_may_begins_with_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, monkeypatch, [done], resources__workers=8, resources__min_workers=1)
    assert runs.execute().state == "done"
    assert runs.workers == [4]
