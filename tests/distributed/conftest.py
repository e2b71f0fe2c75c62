"""The workers run once for all tests of this folder: starting processes is what takes the time."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

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
    return Runs(world_size, size, run_workers(work, world_size, tmp_path_factory.mktemp("workers"), size))
