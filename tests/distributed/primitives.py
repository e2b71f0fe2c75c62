"""Gathering and batch norm on workers' rows, and the same in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simlap.train.distributed import all_gather_with_gradient, convert_sync_batchnorm


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype, float]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (4,), torch.float64, 0.0),
    "2d": (lambda: nn.BatchNorm2d(4, momentum=0.3, eps=1e-3), (4, 3, 2), torch.float64, 0.0),
    "cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (4,), torch.float64, 0.0),
    "no affine": (lambda: nn.BatchNorm1d(4, affine=False), (4,), torch.float64, 0.0),
    "no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 2), torch.float64, 0.0),
    "far from zero": (lambda: nn.BatchNorm2d(4), (4, 3, 2), torch.float32, 3e3),
    "half": (lambda: nn.BatchNorm1d(4), (4,), torch.bfloat16, 0.0),
}
"""Name to module, shape of a row, dtype of the input and its mean."""


def norm_case(name: str, size: int, shard: slice, convert: bool) -> dict[str, Tensor]:
    """Output, gradients and state after three steps in training mode, and the output in evaluation mode."""
    build, shape, dtype, mean = NORMS[name]
    module = build().double() if dtype == torch.float64 else build()
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.copy_(numbers(4, seed=50 + seed))
    if convert:
        module = convert_sync_batchnorm(module)
    found: dict[str, Tensor] = {}
    for step in range(3):
        x = (numbers(size, *shape, seed=step) + mean).to(dtype)[shard].requires_grad_()
        out = module(x)
        module.zero_grad()
        out.backward(numbers(size, *shape, seed=100 + step).to(dtype)[shard])
        assert x.grad is not None
        found |= {f"out {step}": out.detach(), f"x.grad {step}": x.grad}
    found |= {f"{name}.grad": p.grad for name, p in module.named_parameters() if p.grad is not None}
    found |= {name: x.clone() for name, x in module.state_dict().items()}
    if name != "no statistics":  # its evaluation takes those of the rows at hand, with torch's too
        found["evaluation"] = module.eval()(numbers(size, *shape, seed=9).to(dtype)[shard]).detach()
    return found


def rows_on_one_worker(size: int) -> dict[str, Tensor]:
    """Output and gradients of all rows on rank 0, and of none on the others."""
    module = convert_sync_batchnorm(nn.BatchNorm2d(4).double())
    mine = slice(None) if dist.get_rank() == 0 else slice(0)
    x = numbers(size, 4, 3, 2)[mine].requires_grad_()
    out = module(x)
    out.backward(numbers(size, 4, 3, 2, seed=1)[mine])
    assert x.grad is not None
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x.grad": x.grad, **gradients}


def gather_case(rank: int, world_size: int, size: int) -> dict[str, Any]:
    """Rows [b, 2, 3] of this worker, gathered; the gradient of a sum that every worker weighs differently."""
    x = numbers(size, 2, 3)[rank::world_size].requires_grad_()
    everything = all_gather_with_gradient(x)
    weights = numbers(size, 2, 3, seed=1 + rank)
    (everything * weights).sum().backward()
    half = x.detach().bfloat16().requires_grad_()
    all_gather_with_gradient(half).sum().backward()
    sizes = [len(range(r, size, world_size)) for r in range(world_size)]
    try:
        all_gather_with_gradient(x, sizes=[n + 1 for n in sizes])
        refused = ""
    except ValueError as error:
        refused = str(error)
    group = dist.new_group([0])  # of one: nothing to gather
    return {
        "rows": everything.detach(),
        "grad": x.grad,
        "half grad": half.grad,
        "labels": all_gather_with_gradient(torch.arange(size)[rank::world_size]),
        "known sizes": all_gather_with_gradient(x, sizes=sizes).detach(),
        "wrong sizes": refused,
        "alone": not isinstance(group, dist.ProcessGroup) or all_gather_with_gradient(x, group) is x,
    }


def one_value_per_channel() -> str:
    """The message of training on one row in all, which only rank 0 holds."""
    module = convert_sync_batchnorm(nn.BatchNorm1d(4))
    try:
        module(torch.zeros(1 if dist.get_rank() == 0 else 0, 4))
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, world_size: int, size: int) -> dict[str, Any]:
    shard = slice(rank, None, world_size)
    return {
        "norms": {name: norm_case(name, size, shard, convert=True) for name in NORMS},
        "gather": gather_case(rank, world_size, size),
        "rows on one worker": rows_on_one_worker(size),
        "one value": one_value_per_channel(),
    }
