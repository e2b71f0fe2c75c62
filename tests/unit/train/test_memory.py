"""The C library is told once, and what it keeps is reused."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simlap.run import cluster
from simlap.train.memory import keep_freed_memory

_FAULTS = """
import resource, sys, threading, torch
from simlap.train.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each: more than glibc ever keeps by itself
    held += [torch.ones(2**21) for _ in range(8)]  # 8 MiB each: in the heap, whatever a thread has of it
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def run():
    if "keep" in sys.argv:
        assert keep_freed_memory()
    for _ in range(4):
        last = faults()
    print(last)
if "thread" in sys.argv:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
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


def faults(*options: str, **environment: str) -> int:
    """Pages fetched by the fourth of four equal steps, with these options of the C library and none of this process's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, *options],
        capture_output=True, text=True, check=True, env={**inherited, **environment},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_memory_is_not_fetched_again() -> None:
    assert 4 * faults("keep") < faults()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_nor_in_a_thread_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train runs the loop in a thread, in the environment that is set for all workers."""
    name = "MALLOC_ARENA_MAX"
    monkeypatch.setenv(name, cluster._ENVIRONMENT[name])  # as a test that has used Ray in this process leaves it
    assert 4 * faults("keep", "thread", **{name: cluster._ENVIRONMENT[name]}) < faults("keep", "thread")


@pytest.mark.slow
@pytest.mark.skipif(not _MODE.exists() or "[never]" in _MODE.read_text(), reason="no huge pages here")
def test_the_heap_is_of_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**16, "KiB, of 128 MiB"
