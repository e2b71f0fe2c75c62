"""Whether a dataset fits into memory, asked before anything is decoded."""

from __future__ import annotations

import os
from pathlib import Path

from simlap.errors import DataError

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes this process may still take: of the machine, or of its container where that has a limit."""
    try:
        import psutil
    except ImportError:  # then the machine's whole memory is the bound
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = int(psutil.virtual_memory().available)
    return min(free, _container_memory(_CGROUP, free))


def _container_memory(group: Path, otherwise: int) -> int:
    """What is left of a control group's limit (version 2). The page cache does not count: the kernel gives it back."""
    try:
        limit = (group / "memory.max").read_text().strip()
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return otherwise if limit == "max" else max(0, int(limit) - int(usage["anon"]))
    except (OSError, KeyError, ValueError):  # no such control group here
        return otherwise


def check_memory(num_images: int, channels: int, size: int, *, key: str) -> None:
    """Raise DataError where `num_images` uint8 images [channels, size, size] would not fit.

    Args:
        num_images: of all parts.
        channels: bytes per pixel.
        size: side of the square, in pixels.
        key: the setting that says the size.
    """
    need, free = num_images * channels * size * size, available_memory()
    if need > free:
        raise DataError(
            f"{num_images:,} images of {channels} x {size} x {size} bytes need {need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are available; use smaller images (data.stored_size, data.image_size), a share of them "
            "(data.fraction) or some classes (data.classes)",
            key=key,
            value=size,
        )
