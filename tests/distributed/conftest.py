"""The workers run once for all tests of this folder, also where several processes share them: they are what takes the time."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock

from tests.distributed import methods, network, primitives, ring
from tests.distributed.spawn import run_workers


class Runs(NamedTuple):
    world_size: int
    size: int
    """Rows of the global batch."""
    workers: list[dict[str, Any]]
    """What `work` of the network, the methods, the ring and the primitives returned, by rank."""


def work(rank: int, world_size: int, size: int) -> dict[str, Any]:
    return {
        "network": network.work(rank, world_size, size),
        "methods": methods.work(),
        "ring": ring.work(rank, world_size, size),
        **primitives.work(rank, world_size, size),
    }


@pytest.fixture(scope="session", params=[(2, 12), (3, 14)], ids=["2 workers", "3 uneven workers"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    world_size, size = request.param
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # pytest-xdist: one folder for each session
    results = shared / f"workers-{world_size}.pt"
    with FileLock(f"{results}.lock"):
        if not results.exists():
            torch.save(run_workers(work, world_size, tmp_path_factory.mktemp("workers"), size), results)
    return Runs(world_size, size, torch.load(results, weights_only=False))
