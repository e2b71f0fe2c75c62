"""The C library is told once, and what it keeps is reused."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from simlap.train.memory import keep_freed_memory

_FAULTS = """
import resource, sys, torch
from simlap.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each, all freed at once
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    last = faults()
print(last)
"""


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
