"""Two workers, one of them at fault: both leave the same steps out and stay bit-equal, and a changed bit is found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from simlap.config import Experiment
from simlap.data.batch import Batch
from simlap.data.splits import load_splits
from simlap.storage import Storage
from simlap.train import loop
from simlap.train.alike import DriftError
from simlap.train.checkpoint import CheckpointStore
from simlap.train.features import DivergedError
from simlap.train.step import TrainState, build, train_epoch
from simlap.train.world import World
from tests.distributed.spawn import run_workers
from tests.tiny import tiny

pytestmark = pytest.mark.slow

HOW: dict[str, dict[str, Any]] = {"plain": {}, "in parts": {"train__micro_batch_size": 13}, "wrapped": {}}
"""`wrapped`: in torch's data-parallel wrapper, as workers of several hosts are."""
PARAMETER = "backbone.3.weight"


def experiment(**changes: Any) -> Experiment:
    """4 steps an epoch; rows of two workers: 26 and 25. Batch norm is synchronised."""
    quick = {"data__fraction": 0.2, "train__batch_size": 51, "evaluate": [{"kind": "probe"}]}
    return tiny(**{**quick, "train__max_skipped_steps": 3, **changes})


class Poisoned:
    """A loader with one pixel that is NaN in the second batch, and in all of the third epoch."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.steps_per_epoch = loader.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._loader.batches(epoch, start_step), start=start_step):
            if (epoch, step) == (0, 1) or epoch == 2:
                images = batch.images.clone()
                images[3, 0, 2, 2] = math.nan
                batch = batch.with_images(images)
            yield batch


def tensors(state: TrainState) -> dict[str, Tensor]:
    snapshot = state.snapshot()
    return {name: value.clone() for part in (snapshot.model, snapshot.optimizer) for name, value in part.items()}


def at_fault(how: str, world: World) -> dict[str, Any]:
    """Three epochs in which the second worker has images that are not finite, and once a gradient."""
    elsewhere = mock.patch("simlap.train.distributed.of_host", return_value=None) if how == "wrapped" else nullcontext()
    with elsewhere:
        state = build(experiment(**HOW[how]), load_splits(experiment().data), world)
    assert (state.wrapped is not state.model) == (how == "wrapped")
    if world.rank == 1:
        state.loader = Poisoned(state.loader)  # type: ignore[assignment]

        def spoil(grad: Tensor) -> Tensor:
            return grad * math.inf if (state.epoch, state.step) == (1, 2) else grad

        state.model.get_parameter(PARAMETER).register_hook(spoil)
    seen: list[dict[str, Tensor]] = []

    def look() -> bool:
        seen.append(tensors(state))
        return False

    rows = []
    for _ in range(2):
        assert train_epoch(state, look)
        rows.append(loop._epoch_metrics(state))
        state.next_epoch()
    with pytest.raises(DivergedError) as raised:
        train_epoch(state)
    return {"seen": seen, "rows": rows, "error": str(raised.value), "end": tensors(state)}


class Quiet:
    def start(self, epoch: int, step: int) -> None: ...

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def evaluated(
        self, evaluation_id: str, metrics: dict[str, float], artefact: dict[str, Any] | None = None
    ) -> None: ...


def flipped(folder: str, world: World) -> dict[str, Any]:
    """A run in which a bit of a parameter of the second worker changes after the first epoch."""
    states: list[TrainState] = []

    def kept(*args: Any) -> TrainState:
        states.append(build(*args))
        return states[-1]

    settings, store = experiment(), CheckpointStore(Storage(folder))
    run = loop.fit(settings, load_splits(settings.data), world=world, store=store, reporter=Quiet())
    with mock.patch("simlap.train.loop.build", kept):
        assert next(run).epoch == 1
    if world.rank == 1:
        with torch.no_grad():
            states[0].model.get_parameter(PARAMETER).view(torch.int32)[2, 1, 0, 1] ^= 1 << 20
    with pytest.raises(DriftError) as raised:
        next(run)
    torch.distributed.barrier()  # the first worker has written all that it will
    newest = store.newest()
    assert newest is not None
    return {"error": str(raised.value), "saved": (newest.epoch, newest.step)}


def work(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    world = World.current()
    return {**{how: at_fault(how, world) for how in HOW}, "flipped": flipped(folder, world)}


@pytest.fixture(name="workers", scope="module")
def _workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("flipped")
    return run_workers(work, 2, tmp_path_factory.mktemp("faults"), str(folder))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("how", HOW)
def test_both_leave_the_same_steps_out(workers: list[dict[str, Any]], how: str) -> None:
    first, second = (worker[how] for worker in workers)
    assert [row["train/skipped_steps"] for row in first["rows"]] == [1, 1]
    assert first["rows"] == second["rows"]
    for mine, others in zip(first["seen"], second["seen"], strict=True):
        assert equal(mine, others)
    changed = [not equal(before, after) for before, after in zip(first["seen"], first["seen"][1:], strict=False)]
    # of four steps an epoch the second, and the third
    assert changed == [True, False, True, True, True, True, False]
    assert equal(first["end"], second["end"])


@pytest.mark.parametrize("how", HOW)
def test_both_stop_and_name_the_one_at_fault(workers: list[dict[str, Any]], how: str) -> None:
    first, second = (worker[how]["error"] for worker in workers)
    assert first == second
    assert first.startswith(
        "an image is not finite on worker 1 of 2 in epoch 3, step 1; 3 steps in a row were left out"
    )


def test_a_changed_bit_is_found_and_not_saved(workers: list[dict[str, Any]]) -> None:
    first, second = (worker["flipped"] for worker in workers)
    assert first == second
    # the moments of a decayed parameter follow it
    where = f"workers 0, 1 differ from each other after 2 epochs and 0 steps, first in {PARAMETER} (3 of "
    assert first["error"].startswith(where)
    assert first["saved"] == (1, 0)
