"""Whether a dataset fits into memory, asked before anything is decoded or moved to a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

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


def total_memory() -> int:
    """Bytes that all processes here may take together: of the machine, or of its container where that has a limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, _container_memory(_CGROUP, total, used=False))


def _container_memory(group: Path, otherwise: int, *, used: bool = True) -> int:
    """A control group's limit (version 2), or what is left of it, where what is `used` counts.

    The page cache does not count: the kernel gives it back.
    """
    try:
        limit = (group / "memory.max").read_text().strip()
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return otherwise if limit == "max" else max(0, int(limit) - (int(usage["anon"]) if used else 0))
    except (OSError, KeyError, ValueError):  # no such control group here
        return otherwise


def check_memory(num_images: int, channels: int, size: int, *, key: str, copies: int | None = None) -> None:
    """Raise DataError where `num_images` uint8 images [channels, size, size] would not fit.

    Each worker of a run holds a copy. Where the launcher says how many share this machine (LOCAL_WORLD_SIZE, of torchrun and of
    Ray Train), their copies together must fit into all the memory there is: of what is free, others may have taken theirs.

    Args:
        num_images: of all parts.
        channels: bytes per pixel.
        size: side of the square, in pixels.
        key: the setting that says the size.
        copies: how many processes of this machine hold the images (default: what the launcher says).
    """
    need, workers = num_images * channels * size * size, copies or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    shape = (num_images, channels, size)
    if need > (free := available_memory()):
        raise _too_large(shape, need, free, "memory", key)
    if workers * need > (total := total_memory()):
        raise _too_large(shape, workers * need, total, f"memory for the copies of {workers} workers", key)


def check_device_memory(images: torch.Tensor, device: torch.device, *, key: str) -> None:
    """Raise DataError where uint8 images [n, c, s, s] would not fit on a CUDA device; others are not asked.

    Args:
        images: elsewhere than on the device.
        device: that they are moved to.
        key: the setting that says the size.
    """
    if device.type != "cuda" or images.device.type == "cuda":
        return
    # what torch keeps of freed tensors is as good as free
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if images.nbytes > free:
        num_images, channels, size, _ = images.shape
        raise _too_large((num_images, channels, size), images.nbytes, free, f"memory on {device}", key)


def _too_large(shape: tuple[int, int, int], need: int, free: int, memory: str, key: str) -> DataError:
    num_images, channels, size = shape
    return DataError(
        f"{num_images:,} images of {channels} x {size} x {size} bytes need {need / 1e9:.1f} GB of {memory}, "
        f"{free / 1e9:.1f} GB are available; decode them while training goes on (`data.streaming: {{}}`), or use "
        "smaller images (data.stored_size, data.image_size), a share of them (data.fraction) or some classes (data.classes)",
        key=key,
        value=size,
    )
