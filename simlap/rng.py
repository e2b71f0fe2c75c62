"""Keyed random draws: every draw is a function of what it is for, never of what was drawn before.

Two forms. `generator(seed, "pairs", epoch, step)` is an ordinary torch generator, seeded by a hash of its key.
`uniform(key, rows, copies, n)` is a counter-based generator (Philox4x32-10, Salmon et al., SC'11) in plain tensor
arithmetic: row i of the result depends on the key and on the counters of row i only, so a worker that holds some rows of a
batch draws what a single process would.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key(*parts: int | str) -> int:
    """A 63-bit integer from the parts of a key, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `key(*parts)`, of which torch's CPU generator uses the low 32 bits only.

    Some two of n generators share a stream with probability about n^2 / 2^33: one in ten for 30,000. Good enough for draws
    that need not be independent of all others; where every row counts, `uniform` uses the whole key.
    """
    return torch.Generator().manual_seed(key(*parts))


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], key_: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10. `counters`: four int64 tensors on the CPU holding 32-bit words, all of one shape. Returns four such."""
    c0, c1, c2, c3 = (counter.numpy() for counter in counters)
    # both halves of a round side by side; numpy, since 50 small operations cost torch several times as much
    even, odd = np.stack((c0, c2)).astype(np.uint64), np.stack((c1, c3)).astype(np.uint64)
    halves = (2,) + (1,) * (even.ndim - 1)
    multipliers = np.array(_MULTIPLIERS, dtype=np.uint64).reshape(halves)
    k0, k1 = key_ & _MASK, (key_ >> 32) & _MASK
    for _ in range(10):
        product = even * multipliers  # 32 x 32 -> 64 bits
        low = product & np.uint64(_MASK)
        product >>= np.uint64(32)
        even = product[::-1] ^ odd
        even ^= np.array((k0, k1), dtype=np.uint64).reshape(halves)
        odd = low[::-1]
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    c0, c2 = even.astype(np.int64)
    c1, c3 = odd.astype(np.int64)
    return torch.from_numpy(c0), torch.from_numpy(c1), torch.from_numpy(c2), torch.from_numpy(c3)


def uniform(key_: int, rows: Tensor, copies: Tensor, n: int) -> Tensor:
    """Uniform draws in the open interval (0, 1) for every row.

    Args:
        key_: from `key(...)`.
        rows: [b] int64, first counter of each row (a sample's index), below 2^32.
        copies: [b] int64, second counter of each row (which copy of the sample), below 2^32.
        n: draws per row.

    Returns:
        [b, n] float32 on the CPU.
    """
    blocks = torch.arange((n + 3) // 4)
    shape = (len(rows), len(blocks))
    words = philox(
        (
            rows[:, None].expand(shape),
            copies[:, None].expand(shape),
            blocks[None].expand(shape),
            torch.zeros(shape, dtype=torch.int64),
        ),
        key_,
    )
    bits = torch.stack(words, dim=2).flatten(1)[:, :n]  # [b, n]
    # 23 bits and a half: exact in float32, never 0, never 1
    return ((bits >> 9).to(torch.float32) + 0.5) * (1.0 / (1 << 23))
