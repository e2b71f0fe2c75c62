"""What a cell's process prints, kept with the cell: `cells/<id>/logs/<attempt>.log`.

Objects are written whole, now and then and at the end of the attempt, and hold the last of what was printed, with stars in place
of secrets.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import re
import sys
import tempfile
import threading
from types import TracebackType

from simlap.redact import MARGIN, hide_in_bytes
from simlap.storage import Storage

MOST = 2**20
"""Bytes of a log that are kept: the last ones."""
EVERY_S = 10.0
_FULL = 16  # times what is kept: a new file is begun
_log = logging.getLogger("simlap.run")
_LEFT_OUT = re.compile(rb"^\[(\d+) earlier bytes are left out\]\n")


def log_name(attempt: int, rank: int = 0) -> str:
    """Of the first worker's log, or another one's in the same group; relative to the run directory."""
    return f"logs/{attempt:04d}" + (f"-rank{rank}" if rank else "") + ".log"


class CellLog:
    """While it is open, standard output and standard error of this process (file descriptors, so C++ too) go to a cell's log.

    Args:
        cell: the run directory.
        attempt: as the journal numbers it.
        rank: of the worker in its group.
        every_s: seconds between two publications while something is printed.
        most: bytes that are kept.
    """

    def __init__(
        self, cell: Storage, attempt: int, *, rank: int = 0, every_s: float = EVERY_S, most: int = MOST
    ) -> None:
        self.cell, self.path = cell, log_name(attempt, rank)
        self._every_s, self._most, self._keep = every_s, most, most + MARGIN
        self._before_file = self._published = 0  # bytes printed before the file was begun; printed when last published
        self._tail = b""  # the last of those before
        self._stop = threading.Event()

    def __enter__(self) -> CellLog:
        _flush()
        self._before = [os.dup(fd) for fd in (1, 2)]
        self._file = _redirect()
        self._thread = threading.Thread(target=self._run, name="simlap-log", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _flush()
        for fd, before in zip((1, 2), self._before, strict=True):
            os.dup2(before, fd)
            os.close(before)
        self._stop.set()
        self._thread.join()
        self.publish()
        self._file.close()

    def publish(self) -> None:
        """Write the log's end to the storage, if anything was printed since. A storage that fails costs the log, not the run."""
        length = os.fstat(self._file.fileno()).st_size
        printed = self._before_file + length
        if printed == self._published:
            return
        text = hide_in_bytes(self._last(length))[-self._most :]  # a secret at the cut is found whole
        head = b"[%d earlier bytes are left out]\n" % (printed - len(text)) if printed > len(text) else b""
        try:
            self.cell.write(self.path, head + text)
        except OSError as error:
            _log.warning("%s could not be written: %s", self.cell.describe(self.path), error)
            return
        self._published = printed

    def _last(self, length: int) -> bytes:
        """The last of everything printed, where the file has so many bytes."""
        kept = min(length, self._keep)
        return (self._tail + os.pread(self._file.fileno(), kept, length - kept))[-self._keep :]

    def _turn_over(self) -> None:
        """Go on in an empty file, or the disk would be filled. What children go on printing to the full one is lost."""
        full, fresh = self._file, _redirect()
        length = os.fstat(full.fileno()).st_size
        self._tail = self._last(length)
        self._before_file += length
        self._file = fresh
        full.close()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            _flush()
            self.publish()
            if os.fstat(self._file.fileno()).st_size > _FULL * self._most:
                self._turn_over()


def read_log(cell: Storage, name: str) -> tuple[int, bytes]:
    """A published log.

    Args:
        cell: the run directory.
        name: as `list_logs` gives it.

    Returns:
        How many bytes were printed before those that are kept, and these.
    """
    data = cell.read(f"logs/{name}")
    head = _LEFT_OUT.match(data)
    return (int(head[1]), data[head.end() :]) if head else (0, data)


def list_logs(cell: Storage) -> list[str]:
    """Names of all attempts' logs, earlier ones first."""
    return [name for name in cell.list("logs") if name.endswith(".log")]


def _redirect() -> io.FileIO:
    """A new file that standard output and standard error go to."""
    handle, name = tempfile.mkstemp(prefix="simlap-", suffix=".log")
    os.unlink(name)
    file = io.FileIO(handle, "a+")
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(handle, fd)
    return file


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed by its owner
            stream.flush()
