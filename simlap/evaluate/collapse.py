"""How much of the projection space the features use, and how they lie in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SPECTRUM = "spectrum_"
"""What the names of the shares of the spectrum begin with."""
_MAX_UNIFORMITY_ROWS = 2048
_NO_SPREAD = 1e-12  # variance below this share of the mean squared norm is float32 rounding


@torch.no_grad()
def collapse_metrics(z: Tensor, labels: Tensor) -> dict[str, float]:
    """Measures of dimensional collapse.

    `effective_rank`: exp of the entropy of the normalised spectrum (Roy & Vetterli, EUSIPCO 2007, with the eigenvalues
    of the covariance for the singular values), and `participation_ratio`: (sum of eigenvalues)^2 / sum of squares; both
    between 1 and D, and 0 where all features are one. `alignment`: mean squared distance over all pairs of one class,
    and `uniformity`: log of the mean of exp(-2 squared distance) over all pairs; both of z on the unit sphere (Wang &
    Isola, ICML 2020). These two are left out where there is no pair. `std_mean` and `std_min`: mean and smallest
    standard deviation of a dimension; `unit_std_mean` and `unit_std_min`: of z on the unit sphere, times sqrt(D), so
    that 1 is the most that the mean can reach, at any D (Chen & He, CVPR 2021, compare with 1 / sqrt(D)).
    `spectrum_0001`, `spectrum_0002`, `spectrum_0004`, ...: the share of the variance that the eigenvalue of this rank has
    (Jing et al., ICLR 2022, draw it), at powers of two up to D, 0 where all features are one.

    Args:
        z: [n, D], projected features.
        labels: int64 [n].
    """
    if not len(z):
        raise ValueError("collapse metrics need features, got none")
    z = z.double()
    values = spectrum(z)
    total = values.sum()
    metrics = {"effective_rank": effective_rank(values), "participation_ratio": 0.0}
    if total > 0:
        metrics["participation_ratio"] = 1 / float((values / total).square().sum())
    metrics |= spectrum_shares(values, z.shape[1])
    unit = F.normalize(z, dim=1)
    for prefix, features, scale in (("", z, 1.0), ("unit_", unit, math.sqrt(z.shape[1]))):
        spread = features.std(0, correction=0) * scale  # [D]
        metrics |= {f"{prefix}std_mean": float(spread.mean()), f"{prefix}std_min": float(spread.min())}
    for name, value in (("alignment", alignment(unit, labels)), ("uniformity", uniformity(unit))):
        if value is not None:
            metrics[name] = value
    return metrics


def spectrum_shares(values: Tensor, width: int) -> dict[str, float]:
    """Shares of the sum at ranks 1, 2, 4, ... up to D. values: [m], ascending, m <= D, see `spectrum`; width: D."""
    total = float(values.sum())
    ranks = [2**power for power in range(width.bit_length())]
    shares = [float(values[-rank]) / total if total > 0 and rank <= len(values) else 0.0 for rank in ranks]
    return {f"{SPECTRUM}{rank:04d}": share for rank, share in zip(ranks, shares, strict=True)}


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of a spectrum, 0 where it is all zeros. values: [m], not negative, see `spectrum`."""
    total = values.sum()
    if not total > 0:
        return 0.0
    p = values / total
    return math.exp(-float(torch.xlogy(p, p).sum()))


@torch.no_grad()
def spectrum(z: Tensor) -> Tensor:
    """Eigenvalues of the covariance of z [n, D], not all of the zeros: min(n, D) of them, ascending, on the CPU.

    From the smaller of the two products of the centred features, which share their non-zero eigenvalues.
    """
    centred = z - z.mean(0)
    n, width = z.shape
    gram = centred @ centred.T if n < width else centred.T @ centred
    values: Tensor = torch.linalg.eigvalsh((gram / n).cpu()).clamp(min=0)
    if float(values.sum()) <= _NO_SPREAD * float(z.square().sum() / n):
        return torch.zeros_like(values)
    return values


def alignment(unit: Tensor, labels: Tensor) -> float | None:
    """Mean squared distance over all pairs (i, j), i != j, of one class; None where there is no such pair.

    Exact without the pairs: over the ordered pairs of a class of m, sum |a - b|^2 = 2 m sum |a|^2 - 2 |sum a|^2.

    Args:
        unit: [n, D], on the unit sphere.
        labels: int64 [n].
    """
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    pairs = int((sizes * (sizes - 1)).sum())
    if not pairs:
        return None
    sums = unit.new_zeros(len(sizes), unit.shape[1]).index_add_(0, classes, unit)  # [classes, D]
    squares = unit.new_zeros(len(sizes)).index_add_(0, classes, unit.square().sum(1))
    return max(0.0, float(2 * (sizes * squares).sum() - 2 * sums.square().sum()) / pairs)


def uniformity(unit: Tensor, max_rows: int = _MAX_UNIFORMITY_ROWS) -> float | None:
    """log mean exp(-2 |a - b|^2) over the pairs of distinct rows; None for a single row.

    Of more than `max_rows` rows, so many evenly spaced ones are taken.

    Args:
        unit: [n, D], on the unit sphere.
    """
    n = len(unit)
    if n > max_rows:
        unit = unit[torch.arange(max_rows, device=unit.device) * n // max_rows]
        n = max_rows
    if n < 2:
        return None
    squares = 2 * unit.square().sum(1)
    exponents = (unit @ unit.T).mul_(4).sub_(squares).sub_(squares[:, None]).clamp_(max=0)  # [n, n], all above -8
    # a row is no pair with itself
    return math.log(float(exponents.exp_().fill_diagonal_(0).sum()) / (n * (n - 1)))
