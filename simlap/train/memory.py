"""Memory that a training step gives back and the next one asks for again."""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MOST = 2**31 - 1
_MOST_BEFORE = 2**25  # of the other threshold, in versions of glibc that have a limit


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the whole process. Whether it could be told to.

    Else glibc returns the activations of every step to the system and gets them back page by page, each of them cleared. What
    a process holds at its peak does not grow by it.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: other allocators keep memory by themselves
        return False
    kept = set_option(_MMAP_THRESHOLD, _MOST) or set_option(_MMAP_THRESHOLD, _MOST_BEFORE)
    return bool(kept) and bool(set_option(_TRIM_THRESHOLD, _MOST))
