"""How the fused kernels are launched: tile sizes, warps, number formats. A table, so that nothing is timed at run time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Precision = Literal["bf16", "tf32", "ieee"]
"""Of the factors of the products; sums are float32 always. `ieee` is plain float32, without tensor cores."""

Norms = Literal["none", "products", "table"]
"""Where the norms |g k| come from: the masked dot has none; [B, N] by products; [U, N] where gates are shared."""

TABLE_PAIRS = 128  # more rows of gates than these are spread over the anchors instead
_HOPPER_SHARED_MEMORY = 227 * 1024


class Plan(NamedTuple):
    """Tile sizes and launch options; the names are those of `fused_kernels`."""

    x: int  # rows that a program keeps
    y: int  # rows that stream past, at a time
    tile: int  # columns that a program sums
    chunk: int  # columns per step of S and n where D > tile, else 0
    warps: int
    stages: int
    stride: int  # columns of the operands: D, padded with zeros


def choose_plan(dim: int, precision: Precision, norms: Norms, shared_memory: int) -> Plan:
    """The plan for D = `dim` on a device with that many bytes of shared memory per program.

    Kept rows, streamed rows, stages and float32 sums must fit in shared memory and registers; the tests compile them all.
    128 kept rows are wanted: with 64, Triton has both groups of four warps make the same S. Two sums of 128 x 256 do not
    fit in any registers, so the norms by products at D = 256 keep 64 rows all the same.
    """
    wide = precision != "bf16"
    two = norms == "products"
    padded = max(16, 2 ** (dim - 1).bit_length())
    hopper = shared_memory >= _HOPPER_SHARED_MEMORY
    if hopper and not wide and padded <= 256:
        x = 64 if two and padded == 256 else 128
        return Plan(x=x, y=64, tile=padded, chunk=0, warps=8, stages=2, stride=padded)
    if padded <= 64:
        return Plan(x=64, y=32, tile=padded, chunk=0, warps=4, stages=2, stride=padded)
    if hopper:
        return Plan(x=128, y=64, tile=128, chunk=32, warps=8, stages=2, stride=-(-dim // 128) * 128)
    return Plan(x=64, y=32, tile=64, chunk=32, warps=4, stages=2, stride=-(-dim // 64) * 64)


def choose_precision(*vectors: Tensor) -> Precision:
    """bf16 where all vectors are of half precision, else what `torch.get_float32_matmul_precision` says.

    `highest` means ieee, `high` tf32, `medium` bf16, as for torch's own products.
    """
    if all(v.dtype in (torch.bfloat16, torch.float16) for v in vectors):
        return "bf16"
    precisions: dict[str, Precision] = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
    return precisions[torch.get_float32_matmul_precision()]


def choose_splits(rows: int, streamed: int, plan: Plan, programs: int) -> int:
    """Over how many programs to split the streamed rows so that `programs` of them have work; 1 if rows alone do.

    Each split has its own float32 sums, which are added up in a fixed order: memory stays below programs x x D.
    """
    blocks = -(-rows // plan.x) * (plan.stride // plan.tile)
    return max(1, min(programs // max(blocks, 1), -(-streamed // plan.y)))
