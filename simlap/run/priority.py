"""Who gets a core first on this machine: training, or what Ray does beside it.

Each of Ray's processes wakes up a hundred times a second to look for signals, and a run has ten of them. Each time one interrupts
a worker in the middle of a step, all workers of the run wait for it. Under Linux's batch policy a process gets its share of the
cores as before, but interrupts nobody when it wakes up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def batch_priority() -> Iterator[None]:
    """Processes and threads that are started within interrupt nobody, nor do those that they start."""
    if not hasattr(os, "SCHED_BATCH"):  # not Linux
        yield
        return
    before = os.sched_getscheduler(0)
    _set(os.SCHED_BATCH)
    try:
        yield
    finally:
        _set(before)


def normal_priority() -> None:
    """The calling thread, and what it starts, may interrupt what has batch priority: for training."""
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _set(os.SCHED_OTHER)


def _set(policy: int) -> None:
    with suppress(PermissionError):  # a sandbox may forbid it; then all is as it would be without
        os.sched_setscheduler(0, policy, os.sched_param(0))
