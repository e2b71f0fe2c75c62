"""Blocks of anchors, for `chunked`: which gates they have, and the memory they share.

Shapes: B anchors, N keys, D embedding width, U gates; b anchors and u gates of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from simlap.losses.forms.problem import Problem

# entries of one [b, N] buffer: what stays in a core's cache; a GPU wants work to fill it
_BLOCK_ENTRIES = {"cpu": 2**18, "cuda": 2**24}
_BLOCK_ROWS = 128  # at least: thinner products are slow


class Buffers(NamedTuple):
    """The [b, N] tensors of a block, written by one block after the other; None where each operation makes its own.

    On a CPU: the heap would grow far beyond what is in use, because glibc before 2.38 often cannot use again what an aligned
    tensor leaves. Not for a single block, whose operations would only become more.
    """

    positive: Tensor | None = None
    excluded: Tensor | None = None
    of_keys: Tensor | None = None
    logits: Tensor | None = None
    margin: Tensor | None = None

    def rows(self, count: int) -> Buffers:
        """The first `count` rows of each."""
        return Buffers(*(None if x is None else x[:count] for x in self))


class Block(NamedTuple):
    part: slice | None
    """Its anchors; None where it is the only one: with a small batch, every operation counts."""
    own: Tensor | None
    """[u], its gates, each once; None where each anchor has its own."""
    places: Tensor | None
    """[b], which of these each anchor has."""
    members: Tensor | None
    """[u, b], 1 where the anchor has the gate."""
    buffers: Buffers

    def anchors(self, of_all: Tensor) -> Tensor:
        """[B, ...] -> [b, ...]."""
        return of_all if self.part is None else of_all[self.part]

    def gates(self, of_all: Tensor) -> Tensor:
        """[U, D] -> [u, D]."""
        return self.anchors(of_all) if self.own is None else of_all.index_select(0, self.own)

    def spread(self, of_gates: Tensor, out: Tensor | None = None) -> Tensor:
        """[u, ...] -> [b, ...]."""
        return of_gates if self.places is None else torch.index_select(of_gates, 0, self.places, out=out)

    def collect(self, of_anchors: Tensor) -> Tensor:
        """Sums over the anchors of each gate, in a fixed order: [b, n] -> [u, n]."""
        return of_anchors if self.members is None else self.members @ of_anchors

    def add(self, of_all: Tensor, gates: Tensor, of_gates: Tensor) -> None:
        """gates x of_gates, [u, D] both, to the rows of its gates among all, [U, D]."""
        if self.own is None:
            torch.mul(gates, of_gates, out=self.anchors(of_all))
        else:
            of_all.index_add_(0, self.own, of_gates.mul_(gates))

    def add_product(self, of_all: Tensor, a: Tensor, b: Tensor) -> None:
        """a @ b to what the blocks add up; the only block's is all of it."""
        if self.part is None:
            torch.mm(a, b, out=of_all)
        else:
            of_all.addmm_(a, b)


def block_rows(problem: Problem) -> int:
    """How many anchors a block has, but the last."""
    return max(_BLOCK_ROWS, _BLOCK_ENTRIES.get(problem.z.device.type, 2**24) // len(problem.keys))


def blocks(problem: Problem) -> Iterator[Block]:
    """All anchors; where they share gates, in `problem.sorted()` order, so that a block has few."""
    anchors, keys, device, size = len(problem.z), len(problem.keys), problem.z.device, block_rows(problem)
    buffers = Buffers()
    if anchors > size and device.type == "cpu":
        buffers = Buffers(*torch.empty(len(Buffers._fields), size, keys, dtype=problem.dtype))
    for start in range(0, anchors, size):
        part = slice(start, start + size) if anchors > size else None
        here = buffers.rows(min(size, anchors - start))
        if problem.gate_index is None:
            yield Block(part, None, None, None, here)
            continue
        index = problem.gate_index if part is None else problem.gate_index[part]
        if device.type == "cpu":
            own, places = index.unique_consecutive(return_inverse=True)
        else:  # which gates a block has, only a CPU knows without waiting
            own, places = torch.arange(len(problem.gates), device=device), index
        yield Block(part, own, places, (own[:, None] == index).to(problem.dtype), here)
