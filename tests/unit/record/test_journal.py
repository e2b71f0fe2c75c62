"""What is read from the segments of several attempts, whoever wrote them and however they ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.record.journal import Journal, cell_storage, end_for_worker, next_attempt, read_cell, read_study
from simlap.storage import Storage
from tests.tiny import tiny

CONFIG = tiny().model_dump(mode="json")


class Writer:
    """An attempt that trains epochs and checkpoints some."""

    def __init__(self, storage: Storage, attempt: int, from_epoch: int = 0, writer: str = "host.1") -> None:
        self.cell = cell_storage(storage, "c")
        self.cell.write("config.yaml", yaml.dump(CONFIG).encode())
        self.journal = Journal(self.cell, writer=writer, attempt=attempt)
        self.journal.start(from_epoch, 0, {})
        self.attempt = attempt

    def epochs(self, *epochs: int, checkpoint: bool = True) -> Writer:
        for epoch in epochs:
            self.journal.epoch(epoch, {"m": epoch + self.attempt / 10})
            if checkpoint:
                self.cell.write(
                    f"checkpoints/epoch-{epoch:05d}-step-0000000-attempt-{self.attempt:04d}/manifest.json", b"{}"
                )
        return self


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def seen(storage: Storage) -> list[tuple[int, float]]:
    return [(row.epoch, row.metrics["m"]) for row in read_cell(storage, "c").rows]


def test_nothing_there(storage: Storage) -> None:
    view = read_cell(storage, "c", seed=7)
    assert (view.state, view.seed, view.rows, view.epoch) == ("new", 7, [], 0)


def test_running_interrupted_and_again(storage: Storage) -> None:
    writer = Writer(storage, 1).epochs(1, 2)
    assert read_cell(storage, "c").state == "running"
    writer.journal.end("interrupted", 2, reason="asked to stop")
    view = read_cell(storage, "c")
    assert (view.state, view.reason, view.epoch, view.durable_epoch) == ("interrupted", "asked to stop", 2, 2)
    assert view.ended_ms is not None
    Writer(storage, 2, from_epoch=2).epochs(3)
    view = read_cell(storage, "c")
    assert (view.state, view.epoch, view.ended_ms) == ("running", 3, None)


def test_epochs_that_no_checkpoint_covered_are_superseded(storage: Storage) -> None:
    Writer(storage, 1).epochs(1).epochs(2, 3, checkpoint=False)
    assert read_cell(storage, "c").durable_epoch == 1
    Writer(storage, 2, from_epoch=1)
    assert seen(storage) == [(1, 1.1)], "what the new attempt does not stand on is not shown"
    Writer(storage, 2, from_epoch=1).epochs(2)
    assert seen(storage) == [(1, 1.1), (2, 2.2)]


def test_an_attempt_that_goes_on_from_a_stale_writers_checkpoint_leaves_no_hole(storage: Storage) -> None:
    first = Writer(storage, 1).epochs(1)
    Writer(storage, 2, from_epoch=1, writer="other.2")
    first.epochs(2, 3)
    Writer(storage, 3, from_epoch=3).epochs(4)
    assert [epoch for epoch, _ in seen(storage)] == [1, 2, 3, 4]


@pytest.mark.parametrize("writers", [("a.1", "z.2"), ("z.2", "a.1")])
def test_of_two_ends_done_wins_and_else_the_later(storage: Storage, writers: tuple[str, str]) -> None:
    Writer(storage, 1, writer=writers[0]).epochs(1).journal.end("interrupted", 1)
    Journal(cell_storage(storage, "c"), writer=writers[1], attempt=1).end("failed", 1, reason="late")
    assert read_cell(storage, "c").state in ("interrupted", "failed")
    Journal(cell_storage(storage, "c"), writer="m.3", attempt=1).end("done", 1)
    Journal(cell_storage(storage, "c"), writer="n.4", attempt=1).end("failed", 1)
    cell_storage(storage, "c").write_json("result.json", {"epochs": 1, "evaluations": {}, "checkpoint": {"sha256": ""}})
    assert read_cell(storage, "c").state == "done"


def test_done_needs_its_result(storage: Storage) -> None:
    Writer(storage, 1).epochs(1).journal.end("done", 1)
    assert read_cell(storage, "c").state == "interrupted"


def test_a_worker_that_never_wrote_anything_gets_an_end(storage: Storage) -> None:
    cell = cell_storage(storage, "c")
    end_for_worker(cell, CONFIG, "failed", attempt=next_attempt(cell), epoch=0, reason="died", error="died\nhorribly")
    view = read_cell(storage, "c")
    assert (view.state, view.reason, view.error, view.config["name"]) == ("failed", "died", "died\nhorribly", "tiny")
    assert next_attempt(cell) == 2


def test_an_end_for_a_worker_belongs_to_the_attempt_it_took_or_was_to_take(storage: Storage) -> None:
    Writer(storage, 1).epochs(1).journal.end("interrupted", 1)
    cell = cell_storage(storage, "c")
    end_for_worker(cell, CONFIG, "failed", attempt=2, epoch=1, reason="never started")
    assert read_cell(storage, "c").state == "failed"
    Writer(storage, 3, from_epoch=1).epochs(2)
    end_for_worker(cell, CONFIG, "stopped", attempt=3, epoch=2, reason="asha")
    assert (read_cell(storage, "c").state, seen(storage)) == ("stopped", [(1, 1.1), (2, 2.3)])


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
def test_every_epoch_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, bool]]
) -> None:
    """Attempts that each run some epochs, with or without a checkpoint at their end."""
    storage = Storage(tmp_path_factory.mktemp("journal"))
    durable = reached = 0
    for number, (length, checkpointed) in enumerate(attempts, start=1):
        reached = durable + length
        writer = Writer(storage, number, from_epoch=durable)
        writer.epochs(*range(durable + 1, reached), checkpoint=False).epochs(reached, checkpoint=checkpointed)
        durable = reached if checkpointed else durable
        view = read_cell(storage, "c")
        assert [row.epoch for row in view.rows] == list(range(1, reached + 1))
        assert view.durable_epoch == durable


def test_an_unknown_study_names_the_known_ones(storage: Storage) -> None:
    storage.write("studies/filter/plan.json", b"{}")
    with pytest.raises(ConfigError, match=r"did you mean 'filter'.*Valid: filter"):
        read_study(storage, "filtre")


def test_how_busy_the_machine_was_is_beside_the_metrics(storage: Storage) -> None:
    """Whatever compares or reports numbers never sees it."""
    writer = Writer(storage, 1)
    writer.journal.epoch(1, {"m": 1.0}, {"system/cpu_utilization_percentage": 50.0})
    writer.journal.epoch(2, {"m": 2.0})
    first, second = read_cell(storage, "c").rows
    assert (first.metrics, first.system) == ({"m": 1.0}, {"system/cpu_utilization_percentage": 50.0})
    assert (second.metrics, second.system) == ({"m": 2.0}, {})
