"""A run whose number of workers changes in the middle of epochs: the same images in the same steps, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simlap.config import Experiment
from simlap.data.batch import Batch
from simlap.data.splits import load_splits
from simlap.storage import Storage
from simlap.train import loop
from simlap.train.checkpoint import CheckpointStore
from simlap.train.step import TrainState, build
from simlap.train.world import World
from tests.distributed.network import relative
from tests.distributed.spawn import run_workers
from tests.tiny import tiny

pytestmark = pytest.mark.slow

PARTS = ((2, 6), (1, 2), (3, 4), (2, None))
"""So many workers, that are stopped when they have asked so often whether to stop (None: they go on to the end)."""
BATCH, STEPS, EPOCHS = 53, 4, 4
WAIT = timedelta(seconds=120)
Seen = list[tuple[int, int, list[int], list[int]]]
"""Epoch, step, rows of the global batch, and the images there: of every step that a worker has made."""


def experiment() -> Experiment:
    """Rows of two workers: 27 and 26; of three: 18, 18 and 17. Batch norm is synchronised, gates are noisy."""
    return tiny(
        data__fraction=0.2,
        train__batch_size=BATCH,
        train__epochs=EPOCHS,
        train__ema_decay=0.9,
        optim__name="sgd",
        optim__lr=0.05,
        optim__momentum=0.9,
        evaluate=[],
    )


class Watched:
    """A loader's batches in float64, and who has had which rows."""

    def __init__(self, state: TrainState, seen: Seen) -> None:
        self._loader, self._seen, self.steps_per_epoch = state.loader, seen, state.loader.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._loader.batches(epoch, start_step), start=start_step):
            yield batch.with_images(batch.images.double())
            # asked for the next one: this step was made
            self._seen.append((epoch, step, batch.rows.tolist(), batch.samples.tolist()))


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.begins: list[tuple[int, int]] = []

    def start(self, epoch: int, step: int) -> None:
        self.begins.append((epoch, step))

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.rows.append({name: value for name, value in metrics.items() if not name.startswith("time/")})

    def evaluated(
        self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None
    ) -> None: ...


def part(world: World, folder: str, attempt: int, asks: int | None) -> dict[str, Any]:
    """Train from where the run stands, until the first worker is asked to stop or to the end."""
    seen: Seen = []
    rows = Rows()

    def build_wide(*args: Any) -> TrainState:
        torch.set_default_dtype(torch.float64)
        try:
            state = build(*args)
        finally:
            torch.set_default_dtype(torch.float32)
        state.loader = Watched(state, seen)  # type: ignore[assignment]
        return state

    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return world.rank == 0 and asks is not None and asked >= asks

    settings, store = experiment(), CheckpointStore(Storage(folder), attempt=attempt)
    run: Callable[..., Any] = loop.fit
    with mock.patch("simlap.train.loop.build", build_wide):
        *_, last = run(settings, load_splits(settings.data), world=world, store=store, reporter=rows, stop=stop)
    assert (last.stopped, last.finished) == (asks is not None, asks is None)
    return {"seen": seen, "rows": rows.rows, "begins": rows.begins, "end": last.epoch}


def work(rank: int, world_size: int, folder: str, meeting: str) -> list[dict[str, Any]]:
    """All parts that this process is a worker of; in the others it waits for those to end that are."""
    found = []
    for number, (workers, asks) in enumerate([*PARTS, (world_size, 0)]):
        if dist.is_initialized():
            dist.destroy_process_group()  # of the part before
        if rank < workers:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}/{number}", rank=rank, world_size=workers, timeout=WAIT
            )
            if number < len(PARTS):
                found.append(part(World.current(), folder, number + 1, asks))
    return found


class Run:
    """What the workers of every part saw, and the state at the end."""

    def __init__(self, folder: Path, parts: list[list[dict[str, Any]]]) -> None:
        self.parts = parts
        newest = CheckpointStore(Storage(folder)).newest()
        assert newest is not None
        self.tensors: dict[str, Tensor] = {**newest.model, **{f"optimizer {k}": v for k, v in newest.optimizer.items()}}

    @property
    def rows(self) -> list[dict[str, float]]:
        return [row for workers in self.parts for row in workers[0]["rows"]]

    @property
    def images(self) -> dict[tuple[int, int], dict[int, int]]:
        """Of every step: the image of each row. Raises AssertionError where a row was had twice."""
        found: dict[tuple[int, int], dict[int, int]] = {}
        for workers in self.parts:
            for worker in workers:
                for epoch, step, rows, samples in worker["seen"]:
                    of_step = found.setdefault((epoch, step), {})
                    assert not of_step.keys() & set(rows), f"step {step} of epoch {epoch} was made twice"
                    of_step.update(zip(rows, samples, strict=True))
        return found


@pytest.fixture(name="runs", scope="module")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "meeting").mkdir()
    most = max(workers for workers, _ in PARTS)
    made = run_workers(work, most, tmp_path_factory.mktemp("workers"), str(folder / "elastic"), str(folder / "meeting"))
    parts = [[made[rank].pop(0) for rank in range(workers)] for workers, _ in PARTS]
    return Run(folder / "elastic", parts), Run(folder / "alone", [[part(World(), str(folder / "alone"), 1, None)]])


def test_the_parts_begin_inside_epochs(runs: tuple[Run, Run]) -> None:
    begins = [workers[0]["begins"][0] for workers in runs[0].parts]
    assert begins[0] == (0, 0)
    assert len({step for _, step in begins[1:]} - {0}) >= 2, begins


def test_every_position_comes_once_in_every_epoch_and_in_the_same_batch(runs: tuple[Run, Run]) -> None:
    elastic, alone = runs
    assert elastic.images == alone.images
    assert elastic.images.keys() == {(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)}
    for epoch in range(EPOCHS):
        samples = [sample for step in range(STEPS) for sample in elastic.images[epoch, step].values()]
        assert len(samples) == len(set(samples)) == STEPS * BATCH


def test_the_numbers_are_those_of_one_process(runs: tuple[Run, Run]) -> None:
    elastic, alone = runs
    assert len(elastic.rows) == EPOCHS
    for row, expected in zip(elastic.rows, alone.rows, strict=True):
        counted = {name for name in expected if name.startswith("gate/") or name == "train/probe_top1"}  # in float32
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6 if name in counted else 1e-9), name
    assert elastic.tensors.keys() == alone.tensors.keys()
    assert any(name.startswith("ema.") for name in elastic.tensors)
    assert any(name.startswith("optimizer ") for name in elastic.tensors)
    assert relative(elastic.tensors, alone.tensors, floor=1e-4) <= 1e-9
