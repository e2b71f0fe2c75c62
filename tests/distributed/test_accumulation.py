"""Gradient accumulation on workers: the plain steps of one process, for every method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from simlap.config import Experiment, override
from simlap.data.batch import Batch
from simlap.data.splits import Splits
from simlap.train.step import TrainState, build, gradients, train_epoch
from simlap.train.world import World
from tests.distributed import methods
from tests.distributed.network import relative
from tests.distributed.spawn import run_workers

pytestmark = pytest.mark.slow

NAMES = tuple(methods.CASES)
TRAINED = (
    "simlap, hard gumbel, cosine",
    "one_to_one, pk, views",
    "supervised, cutmix, pk, views",
    "fuse, noisy gates, pk",
)
"""These go on for an epoch."""


class InFloat64:
    """A loader's batches with wider images."""

    def __init__(self, state: TrainState) -> None:
        self._loader = state.loader
        self.steps_per_epoch = state.loader.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in self._loader.batches(epoch, start_step):
            yield batch.with_images(batch.images.double())


def build_state(name: str, world: World, micro: int | None) -> TrainState:
    """A case of `methods` without the batch norm that would see parts of a batch, on plain gradient descent."""
    experiment: Experiment = override(
        methods.CASES[name],
        [
            ("optim.name", "sgd"),
            ("optim.warmup_epochs", 0.0),
            ("optim.lr", 0.05),
            ("train.micro_batch_size", micro),
        ],
    )
    # the file would be refused: a frozen norm is for learnt weights
    backbone = experiment.backbone.model_copy(update={"frozen_norm": True})
    experiment = experiment.model_copy(update={"backbone": backbone})
    images = methods.images()
    names = tuple("abcdefgh")
    splits = Splits(images, None, images, names, (0.5,), (0.3,), image_size=8, eval_size=8)
    torch.set_default_dtype(torch.float64)
    try:
        state = build(experiment, splits, world)
    finally:
        torch.set_default_dtype(torch.float32)
    state.loader = InFloat64(state)  # type: ignore[assignment]
    return state


def run(name: str, world: World, micro: int | None) -> dict[str, Any]:
    """Metrics and gradients of the first batch, and the state after it, or for some after an epoch of a fresh start."""
    state = build_state(name, world, micro)
    state.wrapped.train()
    output = gradients(state, next(iter(state.loader.batches(0))))
    found = {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}
    after = state.model.state_dict()
    if name in TRAINED:
        fresh = build_state(name, world, micro)
        assert train_epoch(fresh)
        after = fresh.model.state_dict()
    return {"metrics": output.metrics, "gradients": found, "state": after}


def work(rank: int, world_size: int) -> dict[str, Any]:
    return {name: run(name, World.current(), micro=3) for name in NAMES}


@pytest.fixture(name="alone", scope="module")
def _alone() -> dict[str, Any]:
    return {name: run(name, World(), None) for name in NAMES}


@pytest.fixture(name="workers", scope="module")
def _workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of 14 images: 5, 5 and 4, in parts of 3."""
    return run_workers(work, 3, tmp_path_factory.mktemp("accumulation"))


@pytest.mark.parametrize("name", NAMES)
def test_parts_on_workers_are_the_plain_step(workers: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    one = alone[name]
    for worker in workers:
        found = worker[name]
        assert found["gradients"].keys() == one["gradients"].keys()
        assert relative(found["gradients"], one["gradients"], floor=1e-4) <= 1e-9
        for key, value in workers[0][name]["state"].items():
            assert torch.equal(found["state"][key], value), key
    assert relative(workers[0][name]["state"], one["state"]) <= 1e-6
    for key in ("train/loss", "train/probe_loss"):
        total = sum(float(worker[name]["metrics"][key]) for worker in workers)
        assert total == pytest.approx(float(one["metrics"][key]), rel=1e-9)
