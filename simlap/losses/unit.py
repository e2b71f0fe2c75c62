"""Rows of unit size, cosines and normalisers: what the losses share. Rows are [rows, D], scales [rows, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def inverse_maximum(x: Tensor) -> Tensor:
    """1 / the largest magnitude of each row, [rows, 1]; zero for rows without a normal number. Outside autograd."""
    largest = x.abs().amax(dim=1, keepdim=True)
    return torch.threshold_(largest, torch.finfo(x.dtype).tiny, math.inf).reciprocal_()  # NaN stays NaN


def unit_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their largest magnitude, a constant to autograd, and its inverse: see `inverse_maximum`."""
    scale = inverse_maximum(x.detach())
    return x * scale, scale


def unit_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their Euclidean norm, and its inverse; zero for zero rows. For rows of unit size, outside autograd."""
    divisor = torch.threshold(torch.linalg.vector_norm(x, dim=1, keepdim=True), 0.0, math.inf)
    return x / divisor, divisor.reciprocal()


def tangent(gradient: Tensor, unit: Tensor) -> Tensor:
    """The part of each row's gradient that turns the unit vector: the gradient in x of f(x / |x|), times |x|."""
    return gradient - unit * (gradient * unit).sum(dim=1, keepdim=True)


def cosine_logits(z: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """cos(z_i, k_j) / temperature, [B, N], float32 (float64 if an input is). A zero vector has similarity and gradient 0.

    Differentiable in z, keys and temperature. To be called where autocast is off.
    """
    dtype = torch.float64 if torch.float64 in (z.dtype, keys.dtype) else torch.float32
    # rows are brought to unit size first, so that their squares neither over- nor underflow
    unit_z, unit_keys = (F.normalize(unit_max(x.to(dtype))[0], dim=1) for x in (z, keys))
    if isinstance(temperature, Tensor):
        temperature = temperature.to(unit_z)
    return unit_z @ unit_keys.T / temperature


def inverse_count(count: float | Tensor, device: torch.device) -> Tensor:
    """1 / count, a float64 scalar; 0 for a count of 0. No gradient."""
    if not isinstance(count, Tensor):
        return torch.full((), 1.0 / count if count else 0.0, dtype=torch.float64, device=device)
    return torch.threshold(count.detach().to(device, torch.float64), 0.0, math.inf).reciprocal_()
