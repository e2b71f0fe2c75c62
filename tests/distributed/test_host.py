"""Shared memory between the workers of one host gives what gloo gives, and says when it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simlap.comm.host import Host, _make, _map
from tests.distributed import host
from tests.distributed.spawn import run_workers


@pytest.mark.slow
def test_one_core_each(tmp_path: Path) -> None:
    """Workers that would have to share a core do not wait actively."""
    enough = len(os.sched_getaffinity(0)) >= 2
    assert run_workers(_ask, 2, tmp_path) == [{"two": enough, "crowded": False}] * 2


def _ask(rank: int, world_size: int) -> dict[str, bool]:
    import torch.distributed as dist

    from simlap.comm.host import of_host

    two = of_host() is not None
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    group = dist.new_group()
    assert isinstance(group, dist.ProcessGroup)
    return {"two": two, "crowded": of_host(group) is not None}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_exchanges(world_size: int, tmp_path: Path) -> None:
    workers = run_workers(host.work, world_size, tmp_path)
    for rank, found in enumerate(workers):
        assert found["used"] == (world_size <= len(os.sched_getaffinity(0)))
        for name in ("short", "long", "half"):
            of = found[name]
            sent: Tensor = of["sent"]
            wide = sent.to(torch.promote_types(sent.dtype, torch.float32))
            total = wide.sum(0)
            tolerance = 1e-2 if name == "half" else 1e-6
            assert torch.allclose(of["sum"].to(wide), total, rtol=tolerance, atol=tolerance)
            assert torch.allclose(of["average"].to(wide), total / world_size, rtol=tolerance, atol=tolerance)
            assert torch.equal(of["gather"].view_as(sent), sent)
            mine = total.tensor_split(world_size)[rank]
            assert torch.equal(of["rows"], mine.to(sent.dtype)) or torch.allclose(
                of["rows"].to(wide), mine, rtol=tolerance, atol=tolerance
            )
            for kind in ("sum", "average"):
                assert torch.equal(of[kind], workers[0][name][kind]), "every worker has the same bits"
        several = found["several"]
        assert several["kept"], "in place"
        for i, mean in enumerate(several["average"]):
            expected_mean = sum(sent[i] for sent in several["sent"]) / world_size
            assert torch.allclose(mean, expected_mean, rtol=1e-6, atol=1e-6)
            assert torch.equal(mean, workers[0]["several"]["average"][i]), "every worker has the same bits"
        assert found["vector"].tolist() == [sum(range(world_size)) + world_size * n for n in range(5)]
        assert found["empty"] == [(0, 3), (0, 3)]
        assert torch.equal(found["columns"], torch.arange(6.0).view(2, 3).T.repeat(world_size, 1))
        expected = [world_size * turn * world_size + sum(range(world_size)) for turn in range(200)]
        assert found["turns"][:, 0].tolist() == expected


def test_more_workers_than_cores_give_the_same() -> None:
    """Three ends in one process, where there need not be a core for each."""
    memory = torch.zeros(Host.size_of(3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    sent = torch.randn(3, host.LONG, generator=generator)
    rows = [2, 0, 3]

    def end(rank: int) -> list[Tensor]:
        mine = Host(memory, rank, [os.getpid()] * 3)
        found = []
        for _ in range(3):
            summed = sent[rank].clone()
            mine.average_([summed])
            tall = sent[rank, : 5 * 70_000].view(5, 70_000)
            found = [summed, mine.sum(sent[rank]), mine.sum_rows(tall, sum(rows[:rank]), rows[rank])]
        return found

    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(end, range(3)))
    expected = sent[0] + sent[1] + sent[2]
    assert all(torch.equal(end[0], expected / 3) for end in ends)
    assert all(torch.allclose(end[1], expected, rtol=1e-6, atol=1e-6) for end in ends)
    assert torch.allclose(torch.cat([end[2] for end in ends]).view(-1), expected[: 5 * 70_000], rtol=1e-6, atol=1e-6)


@pytest.fixture
def path() -> Iterator[str]:
    made = _make(Host.size_of(2))
    assert made is not None
    yield made
    Path(made).unlink()


_PEER = """
import sys, time, torch
from simlap.comm.host import Host, _map
memory = _map(sys.argv[1], Host.size_of(2))
host = Host(memory, 1, [int(sys.argv[2]), 0])
host.sum(torch.ones(int(sys.argv[3])))
print("met", flush=True)
time.sleep(600)
"""


def _peer(path: str, elements: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PEER, path, str(os.getpid()), str(elements)], stdout=subprocess.PIPE, text=True
    )


def test_a_worker_that_has_ended_is_not_waited_for(path: str) -> None:
    with _peer(path, 3) as peer:
        memory = _map(path, Host.size_of(2))
        assert memory is not None
        mine = Host(memory, 0, [os.getpid(), peer.pid])
        assert mine.sum(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        peer.send_signal(signal.SIGKILL)  # a zombie until it is waited for: not running either
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=rf"worker 1 \(process {peer.pid}\) has ended; worker 0 waited for it"):
            mine.sum(torch.ones(3))
        assert time.monotonic() - began < 60


def test_workers_out_of_step_are_told(path: str) -> None:
    with _peer(path, 4) as peer:
        memory = _map(path, Host.size_of(2))
        assert memory is not None
        with pytest.raises(RuntimeError, match="in exchange 1 worker 0 sends 12 bytes, worker 1 16"):
            Host(memory, 0, [os.getpid(), peer.pid]).sum(torch.ones(3))
        peer.kill()


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = {*Path("/dev/shm").iterdir()}
    assert _make(1 << 20) is None
    assert {*Path("/dev/shm").iterdir()} <= before
    assert _map("/dev/shm/simlap-is-not-there", 10) is None
