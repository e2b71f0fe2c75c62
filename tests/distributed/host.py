"""What a worker does with the memory it shares with the others, and what it would have got from gloo."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from simlap import comm
from simlap.comm.host import SLOT_BYTES, of_host

LONG = SLOT_BYTES // 4 * 2 + 12345
"""Elements of float32 that take three pieces, the last one not full."""


def work(rank: int, world_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)
    found: dict[str, Any] = {"used": of_host() is not None}
    for name, dtype, size in (
        ("short", torch.float64, 7),
        ("long", torch.float32, LONG),
        ("half", torch.bfloat16, 1001),
    ):
        x = torch.randn(size, generator=generator).to(dtype)
        sent = [torch.empty_like(x) for _ in range(world_size)]
        dist.all_gather(sent, x)
        rows = [len(part) for part in x.tensor_split(world_size)]
        averaged = x.clone()
        comm.average_([averaged])
        found[name] = {
            "sent": torch.stack(sent),
            "sum": comm.sum_over_workers(x.clone()),
            "gather": comm.gather(x.view(-1, 1)),
            "rows": comm.sum_rows(x, rows),
            "average": averaged,
        }
    # gradients as they come: of several dtypes and layouts, one longer than a piece, one empty, one of no dense memory
    several = [
        torch.randn(3, 4, 5, 5, generator=generator).to(memory_format=torch.channels_last),
        torch.randn(LONG, generator=generator),
        torch.randn(7, dtype=torch.float64, generator=generator),
        torch.randn(0, 2, generator=generator),
        torch.randn(6, 4, generator=generator)[:, ::2],
        torch.randn((), generator=generator),
    ]
    of_all: list[list[Tensor]] = [[torch.empty(0)] for _ in range(world_size)]
    dist.all_gather_object(of_all, several)
    layouts = [x.stride() for x in several]
    comm.average_(several)
    found["several"] = {
        "sent": of_all,
        "average": several,
        "kept": [x.stride() for x in several] == layouts,
    }
    found["vector"] = comm.sum_vector(np.arange(5.0) + rank)
    empty = torch.empty(0, 3)
    found["empty"] = [comm.sum_over_workers(empty).shape, comm.gather(empty).shape]
    found["columns"] = comm.gather(torch.arange(6.0).view(2, 3).T)
    # the memory is used in turns: what was read must not have been overwritten
    turns: list[Tensor] = [
        comm.sum_over_workers(torch.full((5,), float(turn * world_size + rank))) for turn in range(200)
    ]
    found["turns"] = torch.stack(turns)
    return found
