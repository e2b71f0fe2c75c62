"""A folder of files that processes share: each is made once, by whoever claims it first, and is removed when room is needed.

A file is made under another name and locked until it is complete, so a process that dies leaves no lock behind and nothing
that looks complete. Users of a file hold a shared lock on it, and what is in use is not removed. Nothing depends on clocks of
different machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

LIMIT_VARIABLE = "SIMLAP_CACHE_GB"
_SHARE_OF_DISK = 0.2
_SUFFIX, _PARTIAL = ".splits", ".partial"


class SharedFile:
    """A file of the folder by its name. All methods but `discard` raise OSError where the folder cannot be used."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.path, self._partial = folder, folder / (name + _SUFFIX), folder / (name + _PARTIAL)

    def open(self) -> BinaryIO | None:
        """The complete file, to be read, or None where there is none (yet). Its shared lock lives as long as what maps it."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.path, "rb"))
            except FileNotFoundError:
                return None
            if not _locked(file, fcntl.LOCK_SH) or not _is_at(self.path, file):
                return None
            stack.pop_all()  # stays open
        with contextlib.suppress(OSError):  # in a folder that cannot be written to, nothing is removed either
            os.utime(self.path)  # last use
        return file

    def claim(self) -> BinaryIO | None:
        """An empty file to be written and published, or None where another process is making it or has made it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(descriptor, "r+b"))
            if not _locked(file, fcntl.LOCK_EX) or not _is_at(self._partial, file):
                return None
            if self.path.exists():
                self._partial.unlink()
                return None
            file.truncate(0)  # one that died may have left something
            stack.pop_all()  # stays open
        return file

    def publish(self, file: BinaryIO) -> None:
        """Let others see a claimed file, which is complete now."""
        os.replace(self._partial, self.path)
        file.close()

    def discard(self, file: BinaryIO) -> None:
        """Give up a claimed file that is not published."""
        if not file.closed:
            with contextlib.suppress(OSError):  # the next one to claim it empties it
                self._partial.unlink()
            file.close()

    def remove(self, damaged: BinaryIO) -> None:
        """Remove the complete file, if it still is the one that was found damaged; close that."""
        if _is_at(self.path, damaged):
            self.path.unlink()
        damaged.close()

    def make_room(self, size: int) -> None:
        """Remove what was not used for longest until so many bytes more are within the limit.

        The limit is `$SIMLAP_CACHE_GB` (in 10^9 bytes), or a fifth of what the disk would have free without the folder's files.

        Raises:
            OSError: there is no room, however much is removed; nothing is, where that is known beforehand.
        """
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                if path.suffix == _PARTIAL:
                    _remove_unused(path)  # its maker has died, unless it is locked
                elif path.suffix == _SUFFIX:
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        held, free = sum(entry[1] for entry in found), shutil.disk_usage(self.folder).free
        named = os.environ.get(LIMIT_VARIABLE)
        limit = min(float(named) * 1e9 if named else _SHARE_OF_DISK * (free + held), free + held)
        if size <= limit:
            for _, freed, path in sorted(found):
                if held + size <= limit:
                    break
                held -= freed if _remove_unused(path) else 0
        if held + size > limit:
            raise OSError(
                f"{size / 1e9:.2f} GB are too much for {self.folder}, which may hold {limit / 1e9:.2f} GB and has "
                f"{held / 1e9:.2f} GB in use ({LIMIT_VARIABLE} sets the limit)"
            )


def _remove_unused(path: Path) -> bool:
    """Remove a file that no process has locked. False where one has."""
    with open(path, "rb") as file:
        if not _locked(file, fcntl.LOCK_EX):
            return False
        path.unlink()
    return True


def _locked(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the path still leads to this file: it may have been renamed or removed since it was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
