"""Runs a function in several gloo processes and brings back what each returned."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

TIMEOUT = 240.0  # seconds; a collective that not all ranks reach must fail, not hang


def run_workers(function: Callable[..., Any], world_size: int, directory: Path, *args: Any) -> list[Any]:
    """Calls `function(rank, world_size, *args)` in `world_size` fresh processes of one thread.

    Args:
        function: of a module's top level; returns what `torch.save` can write.
        directory: an empty folder, for the rendezvous and the results.

    Returns:
        The results in rank order.
    """
    # the server imports once for all: a process of its own would take seconds for it
    multiprocessing.set_forkserver_preload(["torch.distributed", function.__module__])
    context = start_processes(
        _entry,
        args=(function, world_size, str(directory), args),
        nprocs=world_size,
        join=False,
        start_method="forkserver",
    )
    deadline = time.monotonic() + TIMEOUT
    while not context.join(timeout=1.0):  # raises what a worker raised
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} did not end within {TIMEOUT:g} s")
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _entry(rank: int, function: Callable[..., Any], world_size: int, directory: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT / 2),
    )
    result = function(rank, world_size, *args)
    torch.save(result, f"{directory}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
