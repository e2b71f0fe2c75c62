"""One process stops at once; several stop together (tests/distributed/test_fit.py asks whole runs)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from simlap.train.stopping import Stopping
from simlap.train.world import World


class _Work:
    def __init__(self) -> None:
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1


def test_alone_it_asks_before_every_step() -> None:
    answers = iter([False, False, True])
    stopping = Stopping(World(), lambda: next(answers))
    assert [stopping() for _ in range(3)] == [False, False, True]
    stopping.finish()


def test_what_another_worker_says_counts_one_step_later(monkeypatch) -> None:
    others = iter([0.0, 1.0])
    begun: list[_Work] = []

    def all_reduce(tensor: torch.Tensor, async_op: bool) -> _Work:
        assert async_op, "no step waits for the votes"
        tensor += next(others)
        begun.append(_Work())
        return begun[-1]

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    stopping = Stopping(World(0, 2), lambda: False)
    assert not stopping()
    assert begun[0].waited == 0
    assert not stopping()  # the other one is asked before this step
    assert begun[0].waited == 1
    assert stopping()
    assert len(begun) == 2, "nothing is begun that nobody would wait for"
    stopping.finish()


def test_at_the_end_all_have_taken_part(monkeypatch) -> None:
    work = _Work()
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op: work)
    stopping = Stopping(World(0, 2), lambda: False)
    stopping()
    stopping.finish()
    assert work.waited == 1
