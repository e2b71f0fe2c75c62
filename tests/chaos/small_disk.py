"""A disk of one MiB: a file system in memory, mounted for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mounted at the folder. Skips the test where this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "simlap-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip(f"needs to be root and to mount: {done.stderr.strip() if done else f'uid {os.geteuid()}'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> None:
    """Take all the space there is but so many bytes, with a file `BALLAST`."""
    stat = os.statvfs(folder)
    pages = max(0, stat.f_bavail - -(-leave // stat.f_frsize))
    (folder / BALLAST).write_bytes(bytes(pages * stat.f_frsize))


def make_room(folder: Path, size: str) -> None:
    """Let the disk hold so much from now on."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
