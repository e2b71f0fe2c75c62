"""One process stops at once; several stop together (tests/distributed/test_fit.py asks whole runs)."""

from __future__ import annotations

import pytest
from torch import Tensor

from simlap.train.stopping import Stopping
from simlap.train.world import World


def test_alone_it_asks_before_every_step() -> None:
    answers = iter([False, False, True])
    stopping = Stopping(World(), lambda: next(answers))
    assert [stopping() for _ in range(3)] == [False, False, True]
    stopping.finish()


def test_what_another_worker_says_counts_one_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    others = iter([0.0, 1.0])
    asked: list[float] = []

    def sum_over_workers(votes: Tensor) -> Tensor:
        asked.append(float(votes))
        return votes + next(others)

    monkeypatch.setattr("simlap.train.stopping.sum_over_workers", sum_over_workers)
    stopping = Stopping(World(0, 2), lambda: False)
    assert not stopping()
    assert not stopping()  # the other one is asked before this step
    assert stopping()
    assert asked == [0.0, 0.0], "nothing is begun that nobody would wait for"
    stopping.finish()
