"""Rank correlation of two distance matrices over the same objects, with a permutation p-value (Mantel 1967)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simlap import rng

Matrix = NDArray[np.float64]
_BLOCKS = 8  # of rows; of each, only the columns from its own on are permuted
_MAX_ENTRIES = 1 << 21  # of a block of permuted matrices: 16 MiB of int64
_DIGITS = 10  # what differs by less is a tie
MAX_OBJECTS = 1500
"""Up to here the sum of products of ranks fits 64 bits."""


@dataclass(frozen=True)
class Correlation:
    """What `mantel` finds."""

    rho: float
    """Spearman's rank correlation over the unordered pairs."""
    p: float
    """One-sided: share of the permutations of the objects with a correlation at least as large."""
    permutations: int
    """How many were looked at."""
    exact: bool
    """Whether these are all there are."""


def mantel(
    first: Matrix, second: Matrix, permutations: int, *, device: torch.device | str = "cpu"
) -> Correlation | None:
    """Spearman's correlation of the upper triangles and its p-value; None where one side knows no differences.

    The entries of a distance matrix are not independent, so the objects are permuted, not the entries: rows and columns
    of one matrix together. All C! permutations are counted where they are no more than `permutations`; otherwise so
    many are drawn by a key and p = (1 + count) / (1 + permutations). Ranks (doubled, ties at their mean) are integers, and
    so are the sums that are compared: no rounding makes or breaks a tie.

    Args:
        first, second: [C, C], symmetric; the diagonal is not looked at.
        permutations: at most so many.
        device: where the permuted sums are computed.
    """
    from scipy.stats import rankdata

    c = len(first)
    if first.shape != (c, c) or second.shape != (c, c):
        raise ValueError(f"two square matrices of one size are needed, got {first.shape} and {second.shape}")
    if c > MAX_OBJECTS:
        raise ValueError(f"at most {MAX_OBJECTS} objects, got {c}")
    upper = np.triu_indices(c, 1)
    ranks = [rankdata(_rounded(matrix[upper])) for matrix in (first, second)]
    if c < 3 or any(np.ptp(r) == 0 for r in ranks):
        return None
    rho = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    a, b = (_symmetric(r, upper, c).to(device) for r in ranks)
    a = a.triu(1)
    observed = int(_sums(a, b, torch.arange(c, device=device)[None]))
    exact = math.factorial(c) <= permutations
    orders = (
        torch.tensor(list(itertools.permutations(range(c))))
        if exact
        else torch.rand(permutations, c, generator=rng.generator("mantel", c, permutations)).argsort(1)
    )
    count = 0
    for chunk in orders.split(max(1, _MAX_ENTRIES * _BLOCKS // (c * c))):
        count += int((_sums(a, b, chunk.to(device)) >= observed).sum())
    p = count / len(orders) if exact else (1 + count) / (1 + len(orders))
    return Correlation(rho, p, len(orders), exact)


def _rounded(values: Matrix) -> Matrix:
    """To so many digits of the largest value: equal distances come out of float arithmetic a little different."""
    largest = float(np.abs(values).max(initial=0.0))
    rounded: Matrix = np.round(values / largest, _DIGITS) if largest > 0 else values
    return rounded


def _symmetric(ranks: Matrix, upper: tuple[NDArray[np.intp], ...], c: int) -> Tensor:
    """Doubled ranks as an int64 matrix with diagonal 0."""
    matrix = np.zeros((c, c), dtype=np.int64)
    matrix[upper] = np.rint(2 * ranks).astype(np.int64)
    return torch.from_numpy(matrix + matrix.T)


def _sums(a: Tensor, b: Tensor, orders: Tensor) -> Tensor:
    """Sums of a times the permuted b. a, b: [C, C], of which a has entries above the diagonal only; orders: [n, C]; -> [n]."""
    (n, c), size = orders.shape, -(-len(a) // _BLOCKS)
    total = torch.zeros(n, dtype=torch.int64, device=a.device)
    for start in range(0, c, size):
        rows = orders[:, start : start + size]
        # whole rows first, one after another in memory: several times faster than to pick single entries
        permuted = b[rows.flatten()].view(n, -1, c)
        permuted = permuted.gather(2, orders[:, None, start:].expand(-1, rows.shape[1], -1))
        total += (a[start : start + size, start:] * permuted).sum((1, 2))
    return total
