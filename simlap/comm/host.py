"""Exchanges between the workers of one host, through memory that they share.

Gloo goes through sockets and threads: hundreds of microseconds an exchange, and milliseconds where a waiting core is taken
away by a hypervisor. A step with synchronised batch norm has dozens of exchanges of a few kilobytes. Here each worker writes
into its own slot, counts up, and looks at the others' counters until they have come too: some tens of microseconds.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from simlap.hung import hung_s

SLOT_BYTES = 1 << 20
"""Longer vectors go in pieces of this size; two workers' pieces stay in a core's cache."""
_LINE = 128
"""Bytes from one worker's counters to the next's: cores that write to the same cache line wait for each other."""
_SPIN_S, _PAUSE_S, _LOOK_S = 0.02, 0.0005, 1.0
"""A worker that waits yields its core; after `_SPIN_S` (another one evaluates, or saves) it sleeps in between, and every
`_LOOK_S` it looks whether the others are still there."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - files there are this user's alone, by mode

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

_known: WeakKeyDictionary[dist.ProcessGroup, Host | None] = WeakKeyDictionary()


def of_host(group: dist.ProcessGroup | None = None) -> Host | None:
    """The shared memory of a group, made on first use (so all workers must ask), or None where it cannot be.

    It can where all workers run on this host and see each other's processes, each with a core to itself (they wait
    actively), the processor keeps the order of writes (x86), and there is room.
    """
    group = group or dist.group.WORLD
    assert group is not None
    if group not in _known:
        _known[group] = _meet(group)
    return _known[group]


class Host:
    """One worker's end.

    Args:
        memory: `size_of(W)` bytes of zeros that all workers share.
        rank: this worker.
        pids: the workers' processes by rank.
    """

    def __init__(self, memory: Tensor, rank: int, pids: list[int]) -> None:
        self._rank, self._pids = rank, pids
        self._others = [other for other in range(len(pids)) if other != rank]
        counters, slots = memory.split([_LINE * len(pids), 2 * SLOT_BYTES * len(pids)])
        # of each worker: how often it has come, and how many bytes it brought to an even and to an odd exchange
        self._come = memoryview(counters.numpy()).cast("q")
        self._slots = slots.view(2, len(pids), SLOT_BYTES)
        self._numbers = self._slots.view(torch.float64).numpy()
        self._turn = self._piece = 0
        self._patience_s = hung_s()

    @staticmethod
    def size_of(workers: int) -> int:
        return (_LINE + 2 * SLOT_BYTES) * workers

    def sum(self, x: Tensor) -> Tensor:
        """Everyone adds up everything, in rank order. The same shape; as accurate as x's dtype."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        flat = out.view(-1)
        for at, parts in self._exchange(x):
            torch.sum(parts, 0, out=flat[at])
        return out

    def sum_vector(self, x: Vector) -> Vector:
        """As `sum`, for what fits into a slot: [n] -> [n]. Some microseconds less, which is as long as the exchange itself."""
        self._piece += 1
        parts = self._numbers[self._piece % 2, :, : len(x)]
        parts[self._rank] = x
        self._wait(x.nbytes)
        total: Vector = parts[0] + parts[1] if len(parts) == 2 else parts.sum(axis=0)
        return total

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Each is replaced by its mean: of one dtype, dense in memory, in the same layout on all workers."""
        for piece in _pieces(tensors):
            sizes = [len(part) for part in piece]
            count = sum(sizes) * piece[0].element_size()
            self._piece += 1
            slots = self._slots[self._piece % 2][:, :count].view(piece[0].dtype)
            torch._foreach_copy_(slots[self._rank].split(sizes), piece)
            self._wait(count)
            # a piece stays in a core's cache until it is back in place
            torch._foreach_copy_(piece, self._mean(slots).split(sizes))

    def _mean(self, slots: Tensor) -> Tensor:
        """[W, n] -> [n]; more than two workers each add up a share of it and copy the others' sums."""
        workers = len(self._pids)
        if workers == 2:
            return torch.add(slots[0], slots[1]).div_(workers)
        shares = [part.tensor_split(workers) for part in slots]
        mine = shares[self._rank][self._rank]
        # nobody else reads this worker's own share in this worker's slot before the sums are there
        mine.copy_(sum((share[self._rank] for share in shares[1:]), shares[0][self._rank]))
        self._wait(0)
        return torch.cat([shares[owner][owner] for owner in range(workers)]).div_(workers)

    def gather(self, x: Tensor) -> Tensor:
        """[...] -> [W, ...]"""
        out = x.new_empty(len(self._pids), *x.shape)
        flat = out.view(len(self._pids), -1)
        for at, parts in self._exchange(x):
            flat[:, at].copy_(parts)
        return out

    def sum_rows(self, x: Tensor, first: int, rows: int) -> Tensor:
        """`rows` rows of the sum from `first` on, of x's dtype; added up in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        out = x.new_empty(rows, *x.shape[1:], dtype=wide)
        flat, row = out.view(-1), x[:1].numel()
        begin, end = first * row, (first + rows) * row
        for at, parts in self._exchange(x):
            low, high = max(begin, at.start), min(end, at.stop)
            if low < high:
                torch.sum(
                    parts[:, low - at.start : high - at.start], 0, dtype=wide, out=flat[low - begin : high - begin]
                )
        return out.to(x.dtype)

    def _exchange(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of x, flattened: the place of each, and all workers' [W, n], which hold until the next is asked for."""
        flat = x.detach().reshape(-1)
        step = SLOT_BYTES // flat.element_size()
        for begin in range(0, flat.numel(), step):
            piece = flat[begin : begin + step]
            # Two slots in turn: who writes the next but one has met everybody at the next, after they were done with this one.
            self._piece += 1
            parts = self._slots[self._piece % 2][:, : piece.nbytes].view(piece.dtype)
            parts[self._rank].copy_(piece)
            self._wait(piece.nbytes)
            yield slice(begin, begin + len(piece)), parts

    def _wait(self, brought: int) -> None:
        """Until all workers have come as often as this one, each with as many bytes."""
        self._turn = turn = self._turn + 1
        come, stride = self._come, _LINE // 8
        at = self._rank * stride
        come[at + 1 + turn % 2] = brought
        come[at] = turn  # after all else: x86 keeps the order of writes
        for other in self._others:
            at = other * stride
            if come[at] < turn:
                self._wait_for(other, at, turn)
            if (theirs := come[at + 1 + turn % 2]) != brought:
                raise RuntimeError(
                    "the workers have lost step with each other: "
                    f"in exchange {turn} worker {self._rank} sends {brought} bytes, worker {other} {theirs}"
                )

    def _wait_for(self, other: int, at: int, turn: int) -> None:
        come = self._come
        began = time.monotonic()
        looked = began
        while come[at] < turn:
            os.sched_yield()
            if (now := time.monotonic()) - began < _SPIN_S:
                continue
            time.sleep(_PAUSE_S)
            if now - looked > _LOOK_S:
                looked = now
                whom = f"worker {other} (process {self._pids[other]})"
                if not _runs(self._pids[other]) and come[at] < turn:
                    raise RuntimeError(f"{whom} has ended; worker {self._rank} waited for it")
                if now - began > self._patience_s:
                    raise RuntimeError(f"worker {self._rank} has waited {self._patience_s:.0f} s for {whom}")


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Views of all elements in the order of memory, [n] each, together as large as a slot."""
    piece: list[Tensor] = []
    left = room = SLOT_BYTES // tensors[0].element_size()
    for tensor in tensors:
        flat = tensor.as_strided((tensor.numel(),), (1,))
        while len(flat):
            piece.append(flat[:left])
            flat = flat[left:]
            left -= len(piece[-1])
            if left == 0:
                yield piece
                piece, left = [], room
    if piece:
        yield piece


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _meet(group: dist.ProcessGroup) -> Host | None:
    rank, workers = dist.get_rank(group), dist.get_world_size(group)
    places: list[tuple[str, int, int]] = [("", 0, 0)] * workers
    dist.all_gather_object(places, (_place(), os.getpid(), len(os.sched_getaffinity(0))), group=group)
    pids = [pid for _, pid, _ in places]
    if len({place for place, _, _ in places}) > 1 or not places[0][0] or min(cores for _, _, cores in places) < workers:
        return None
    size = Host.size_of(workers)
    path: list[str | None] = [_make(size) if rank == 0 else None]
    dist.broadcast_object_list(path, group=group, group_src=0)
    memory = None if path[0] is None else _map(path[0], size)
    there = [False] * workers
    dist.all_gather_object(there, memory is not None, group=group)
    if rank == 0 and path[0] is not None:
        Path(path[0]).unlink()  # it stays mapped, and goes with the last of its users
    return Host(memory, rank, pids) if memory is not None and all(there) else None


def _place() -> str:
    """The same for processes that share memory and see each other; empty where memory cannot be used like this."""
    if platform.machine() not in ("x86_64", "AMD64") or not _MEMORY.is_dir():
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')} {_MEMORY.stat().st_dev}"


def _make(size: int) -> str | None:
    """A file of zeros in shared memory, None where there is no room for it."""
    handle, path = tempfile.mkstemp(prefix="simlap-", dir=_MEMORY)
    try:
        os.posix_fallocate(handle, 0, size)  # a page that is found missing on first use would kill the process
    except OSError:
        Path(path).unlink()
        return None
    finally:
        os.close(handle)
    return path


def _map(path: str, size: int) -> Tensor | None:
    """The shared file as a tensor; None where it is not there: in another container, under the same device number."""
    try:
        with open(path, "r+b", buffering=0) as file:
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
    except (OSError, ValueError):
        return None
