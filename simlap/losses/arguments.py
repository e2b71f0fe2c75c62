"""Checks of what is handed to a loss."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Similarity = Literal["cosine", "masked_dot"]


def check_arguments(
    z: Tensor,
    keys: Tensor,
    gates: Tensor,
    labels: Tensor,
    pair_labels: Tensor,
    key_labels: Tensor,
    temperature: float,
    similarity: str,
    self_index: Tensor | None,
    num_positives: float | Tensor | None,
) -> None:
    """Raises a ValueError that says which argument of `subspace_info_nce` is wrong, and what it should be."""
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, not {similarity!r}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    if z.ndim != 2 or keys.ndim != 2 or z.shape[1] != keys.shape[1] or keys.numel() == 0:
        raise ValueError(f"z and keys must be [B, D] and [N, D] with N, D > 0, not {[*z.shape]} and {[*keys.shape]}")
    shaped: tuple[tuple[str, Tensor | None, torch.Size], ...] = (
        ("gates", gates, z.shape),
        ("labels", labels, z.shape[:1]),
        ("pair_labels", pair_labels, z.shape[:1]),
        ("key_labels", key_labels, keys.shape[:1]),
        ("self_index", self_index, z.shape[:1]),
    )
    for name, tensor, shape in shaped:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {[*shape]}, not {[*tensor.shape]}")
    for name, tensor in (("z", z), ("keys", keys), ("gates", gates)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {tensor.dtype}")
    for name, tensor in (("labels", labels), ("pair_labels", pair_labels), ("key_labels", key_labels)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, not {tensor.dtype}")
    if self_index is not None:
        if self_index.dtype != torch.int64:
            raise ValueError(f"self_index must be int64, not {self_index.dtype}")
        # on a GPU the indexing asserts it: reading the values here would wait for the device
        if self_index.device.type == "cpu" and bool(((self_index < 0) | (self_index >= len(keys))).any()):
            raise ValueError(f"self_index must be columns of the {len(keys)} keys, not {self_index.tolist()}")
    if isinstance(num_positives, Tensor):
        if num_positives.ndim != 0:
            raise ValueError(f"num_positives must be a scalar, not of shape {[*num_positives.shape]}")
    elif num_positives is not None and not (math.isfinite(num_positives) and num_positives >= 0):
        raise ValueError(f"num_positives must be finite and not negative, not {num_positives}")
