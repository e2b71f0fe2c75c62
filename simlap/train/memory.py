"""Memory that a training step gives back and the next one asks for again."""

from __future__ import annotations

import ctypes
import functools
import mmap

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MOST = 2**31 - 1
_MOST_BEFORE = 2**25  # of the other threshold, in versions of glibc that have a limit
_RESERVED = 2**30
_HUGE = 2**21  # a huge page of x86; of Arm with small pages of 4 KiB too


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
    if not kept or not set_option(_TRIM_THRESHOLD, _MOST):
        return False
    _use_huge_pages()
    return True


def _use_huge_pages() -> None:
    """Let the heap's next GiB be of huge pages where the system gives them on request, as it does by default.

    A step passes over its activations again and again, and would wait for the addresses of their pages. Nothing is used by
    it: pages come when they are first written to.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = library.malloc(_RESERVED)
    if begin is None:  # more than the system promises anybody
        return
    first, last = -(-begin // _HUGE) * _HUGE, (begin + _RESERVED) // _HUGE * _HUGE
    library.madvise(first, last - first, mmap.MADV_HUGEPAGE)  # a kernel without them refuses, and nothing is lost
    library.free(begin)  # it stays part of the heap: that was asked for above
