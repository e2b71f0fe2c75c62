"""What a process may take of its machine: threads, and memory of a GPU that it shares with other processes."""

from __future__ import annotations

from typing import cast

import pyarrow
import torch

from simlap.config import Experiment
from simlap.errors import UserError


class DeviceMemoryError(UserError):
    """The GPU's memory, or the run's share of it, is full."""


class HostMemoryError(UserError):
    """The machine's memory, or what this process may take of it, is full."""


_HOST_FULL = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a RuntimeError."""


def is_host_memory(error: BaseException) -> bool:
    """Whether an error says that the machine's memory is full."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _HOST_FULL in str(error))


def set_threads(cpus: int) -> None:
    """Let torch and pyarrow compute with so many threads, whatever they used before.

    Set explicitly: Ray sets OMP_NUM_THREADS for a process's first cell, and the sum of floats depends on the number of threads.
    """
    torch.set_num_threads(cpus)
    pyarrow.set_cpu_count(cpus)


def share_of_memory(gpus_per_worker: float) -> float:
    """The share of its GPU's memory that a worker may take: that of the GPU which Ray schedules it for."""
    return gpus_per_worker if 0 < gpus_per_worker < 1 else 1.0


def set_memory_share(device: torch.device, gpus_per_worker: float) -> None:
    """Cap what this process may allocate on its GPU. A process that had another cap before gets this one. No-op on a CPU.

    The cap counts what torch allocates, not the context that CUDA keeps for every process beside it.
    """
    if device.type == "cuda":
        _cap(device, share_of_memory(gpus_per_worker))


def _cap(device: torch.device, share: float) -> None:
    index = cast("int | None", device.index)  # torch's stubs know no device without
    torch.cuda.empty_cache()  # what the cell before left in torch's hands counts against the cap
    torch.cuda.set_per_process_memory_fraction(share, torch.cuda.current_device() if index is None else index)
    torch.cuda.reset_peak_memory_stats(device)  # only now is CUDA sure to be initialised


def peak_memory(device: torch.device) -> dict[str, int] | None:
    """What this process's cell has taken of its GPU's memory at most, and how much the GPU has, in bytes; None on a CPU.

    What torch has reserved counts, for that is what the cap is on; the context that CUDA keeps beside it does not.
    """
    if device.type != "cuda":
        return None
    return {"peak": int(torch.cuda.max_memory_reserved(device)), "total": total_memory(device)}


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, used or not."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def explain_out_of_memory(experiment: Experiment, device: torch.device, world_size: int) -> DeviceMemoryError:
    """What to tell the user whose run does not fit, with everything that can be done about it."""
    gpus = experiment.resources.gpus
    share = share_of_memory(gpus)
    where = "all of it" if share == 1 else f"{share:g} of it"
    if device.type == "cuda":
        where += f", {share * total_memory(device) / 1e9:.1f} GB"
    remedies = _smaller(experiment, world_size)
    if share < 1:
        remedies.insert(0, f"raise resources.gpus_per_worker (now {gpus:g}), so that fewer cells share the GPU")
    return DeviceMemoryError(f"out of GPU memory (the run may use {where}): {', or '.join(remedies)}")


def explain_host_memory(experiment: Experiment, world_size: int) -> HostMemoryError:
    """The same where the machine's memory is what is full."""
    cpus = experiment.resources.cpus_per_worker
    remedies = [
        f"raise resources.cpus_per_worker (now {cpus}), so that fewer cells run side by side",
        *_smaller(experiment, world_size),
    ]
    if experiment.data.streaming is None:
        remedies.insert(1, "do not hold the images in memory (`data.streaming: {}`)")
    return HostMemoryError(f"the machine is out of memory: {', or '.join(remedies)}")


def _smaller(experiment: Experiment, world_size: int) -> list[str]:
    """What makes a step take less memory."""
    train = experiment.train
    rows = -(-train.batch_size // world_size) * experiment.data.augment.views
    remedies = ["lower train.batch_size (which changes the result)"]
    if train.micro_batch_size is None or train.micro_batch_size > 1:
        now = f"now {train.micro_batch_size}" if train.micro_batch_size else f"now all {rows} rows of a worker at once"
        remedies.insert(0, f"set a smaller train.micro_batch_size ({now})")
    return remedies
