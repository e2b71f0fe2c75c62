"""The C library is told once, and what it keeps is reused."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from simlap.train.memory import keep_freed_memory

_FAULTS = """
import resource, sys, torch
from simlap.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each: more than glibc ever keeps by itself
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    last = faults()
print(last)
"""
_HUGE = """
import re, torch
from pathlib import Path
from simlap.train.memory import keep_freed_memory
keep_freed_memory()
held = torch.ones(2**25)
print(re.search(r"AnonHugePages: +([0-9]+)", Path("/proc/self/smaps_rollup").read_text())[1])
"""
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_a_library_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_freed_memory.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_memory_is_not_fetched_again() -> None:
    found = {
        mode: int(
            subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("keep", "give back")
    }
    assert 4 * found["keep"] < found["give back"]


@pytest.mark.slow
@pytest.mark.skipif(not _MODE.exists() or "[never]" in _MODE.read_text(), reason="no huge pages here")
def test_the_heap_is_of_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**16, "KiB, of 128 MiB"
