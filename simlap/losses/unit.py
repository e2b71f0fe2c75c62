"""Rows of unit size, cosines and normalisers: what the losses share. Rows are [rows, D], scales [rows, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_max(x: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows over their largest magnitude, and its inverse; zero for rows below (smallest normal number)^power.

    To autograd the magnitude is a constant.
    """
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    dead = largest < torch.finfo(x.dtype).tiny ** power  # false for NaN, which stays NaN
    divisor = largest.masked_fill(dead, 1.0)
    return (x / divisor).masked_fill_(dead, 0.0), divisor.reciprocal().masked_fill_(dead, 0.0)


def unit_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their Euclidean norm, and its inverse; zero for zero rows. For rows of unit size, outside autograd."""
    norm = x.norm(dim=1, keepdim=True)
    dead = norm == 0
    divisor = norm.masked_fill(dead, 1.0)
    return x / divisor, divisor.reciprocal().masked_fill_(dead, 0.0)


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
    number = torch.as_tensor(count, device=device).detach().double()
    return torch.where(number > 0, 1.0 / number, 0.0)
