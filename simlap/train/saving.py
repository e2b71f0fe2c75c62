"""Checkpoints are written while the next epoch trains."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from simlap.train.checkpoint import Checkpoint, CheckpointStore


class Saver:
    """Saves checkpoints on a thread of its own, one at a time.

    What goes wrong there is raised by the next call of any method.

    Args:
        store: where to; None on workers that do not write.
        durable: what is there already.
    """

    def __init__(self, store: CheckpointStore | None, durable: Checkpoint | None = None) -> None:
        self._store, self._durable = store, durable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[Checkpoint] | None = None

    def save(self, snapshot: Checkpoint) -> None:
        """Copy the state, which may change from here on, and begin to write it; waits for the one before."""
        self.wait()
        if self._store is None:
            self._durable = snapshot
            return
        copied = _Copy(snapshot)
        self._under_way = self._thread.submit(lambda store: store.save(copied.finished()), self._store)

    def newest(self) -> Checkpoint | None:
        """The newest one that is durable, without waiting."""
        if self._under_way is not None and self._under_way.done():
            self.wait()
        return self._durable

    def wait(self) -> Checkpoint | None:
        """The newest one, once it is durable."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self._durable = under_way.result()
        return self._durable

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


class _Copy:
    """A checkpoint's tensors in memory of their own, on the CPU."""

    def __init__(self, snapshot: Checkpoint) -> None:
        self._checkpoint = replace(snapshot, model=_copies(snapshot.model), optimizer=_copies(snapshot.optimizer))
        self._done: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensors in (snapshot.model, snapshot.optimizer) for tensor in tensors.values()):
            self._done = torch.cuda.Event()
            self._done.record()

    def finished(self) -> Checkpoint:
        """Waits for the device to have copied."""
        if self._done is not None:
            self._done.synchronize()
        return self._checkpoint


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _copy(tensor.detach()) for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    # to pinned memory the device copies when it comes to it; what is queued later may change the original
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
