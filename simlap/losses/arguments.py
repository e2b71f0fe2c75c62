"""Checks of what is handed to a loss. Each raises a ValueError that says which argument is wrong, and what it should be.

Values of tensors are read on the CPU only: on a GPU that would wait for the device (indexing asserts its range there).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Similarity = Literal["cosine", "masked_dot"]
Positives = Literal["pair", "either"]


def check_choice(name: str, value: str, literal: object) -> None:
    """`value` is one of the literal type's."""
    if value not in get_args(literal):
        raise ValueError(f"{name} must be one of {', '.join(get_args(literal))}, not {value!r}")


def check_temperature(temperature: float | Tensor) -> None:
    """A positive finite number, or a floating-point scalar tensor of one."""
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point():
            raise ValueError(
                f"temperature must be a floating-point scalar, not {temperature.dtype} of shape {[*temperature.shape]}"
            )
        if temperature.device.type != "cpu":
            return
        temperature = temperature.item()
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, not {temperature}")


def check_vectors(z: Tensor, keys: Tensor) -> None:
    """z [B, D] and keys [N, D], floating point."""
    if z.ndim != 2 or keys.ndim != 2 or z.shape[1] != keys.shape[1] or keys.numel() == 0:
        raise ValueError(f"z and keys must be [B, D] and [N, D] with N, D > 0, not {[*z.shape]} and {[*keys.shape]}")
    for name, tensor in (("z", z), ("keys", keys)):
        check_floating(name, tensor, tensor.shape)


def check_floating(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Floating point, of this shape."""
    _check_shape(name, tensor, shape)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {tensor.dtype}")


def check_labels(name: str, tensor: Tensor, rows: Tensor) -> None:
    """Integers, one for each of the rows."""
    _check_shape(name, tensor, rows.shape[:1])
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, not {tensor.dtype}")


def check_gates(gates: Tensor, z: Tensor) -> None:
    """Floating point, [U, D] with at least one row."""
    if gates.ndim != 2 or gates.shape[1] != z.shape[1] or len(gates) == 0:
        raise ValueError(f"gates must have shape [U, {z.shape[1]}] with U > 0, not {[*gates.shape]}")
    check_floating("gates", gates, gates.shape)


def check_indices(name: str, tensor: Tensor, rows: Tensor, targets: Tensor, of: str = "keys") -> None:
    """int64 from 0 to N-1 (a row of the N targets, or the number of a group of them), one for each of the rows."""
    _check_shape(name, tensor, rows.shape[:1])
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, not {tensor.dtype}")
    if tensor.device.type == "cpu" and len(tensor):
        lowest, highest = tensor.aminmax()
        if lowest < 0 or highest >= len(targets):
            raise ValueError(
                f"{name} must be from 0 to {len(targets) - 1}, for {len(targets)} {of}, not {tensor.tolist()}"
            )


def check_normaliser(name: str, value: float | Tensor | None) -> None:
    """None, or a finite number that is not negative, or a scalar tensor."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"{name} must be a scalar, not of shape {[*value.shape]}")
    elif value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, not {value}")


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {[*shape]}, not {[*tensor.shape]}")
