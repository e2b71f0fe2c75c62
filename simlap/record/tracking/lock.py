"""One writer at a time for a study (or a run) in a tracking store, among the processes of one machine.

A driver that is killed leaves its shipping process behind for a moment, and `simlap sync` may be called while a study runs:
without the lock each of them would look up the runs that are there and then create what the other has just created.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simlap.record.tracking.uri import uri_hash
from simlap.storage import Storage

WAIT_S = 60.0
_POLL_S = 0.05


def lock_path(storage: Storage, path: str) -> Path:
    """The lock file beside the cursor at `path`, or in the temporary folder where the storage is elsewhere."""
    name = f"simlap-{os.getuid()}-{uri_hash(storage.uri, path)}.lock"
    local = storage.local_path(f"{path.removesuffix('.json')}.lock")
    return local or Path(tempfile.gettempdir(), name)


@contextmanager
def projection_lock(storage: Storage, path: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of the cursor at `path`. The system releases it when the process dies, however that happens.

    Raises:
        TimeoutError: another process held it for all of `wait_s`.
    """
    file = lock_path(storage, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + wait_s
        while not _taken(descriptor):
            if time.monotonic() > end:
                raise TimeoutError(f"another process has been writing these records for {wait_s:.0f} s ({file})")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)  # releases it


def _taken(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
