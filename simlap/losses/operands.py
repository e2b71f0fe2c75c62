"""What the blocks of the subspace InfoNCE read, and what they add to.

Shapes: B anchors, N keys, D embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simlap.losses.unit import unit_max, unit_norm


class Operands(NamedTuple):
    """Rows brought to unit size; `*_scale` [rows, 1] undoes that in the gradients (0 for zero rows)."""

    z: Tensor  # [B, D]
    z_scale: Tensor
    keys: Tensor  # [N, D]
    keys_scale: Tensor
    gates: Tensor  # [B, D]
    gates_scale: Tensor | float
    squared_keys: Tensor | None  # [N, D], for the cosine

    @classmethod
    def prepare(cls, z: Tensor, keys: Tensor, gates: Tensor, cosine: bool) -> Operands:
        """Rows are divided by their largest entry, so that no square over- or underflows: cosines do not notice.

        The gates of `masked_dot` stay as they are: there their size counts.
        """
        z, z_scale = unit_max(z)
        keys, keys_scale = unit_max(keys)
        if cosine:
            return cls(z, z_scale, keys, keys_scale, *unit_max(gates), keys.square())
        z, z_norm_scale = unit_norm(z)
        keys, keys_norm_scale = unit_norm(keys)
        return cls(z, z_scale * z_norm_scale, keys, keys_scale * keys_norm_scale, gates, 1.0, None)


class Gradients(NamedTuple):
    """Sums over the blocks done so far."""

    z: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    gates: Tensor  # [B, D]
    temperature: Tensor | None  # scalar, where it is a tensor

    @classmethod
    def zeros(
        cls, z: Tensor, keys: Tensor, gates: Tensor, temperature: float | Tensor, dtype: torch.dtype
    ) -> Gradients:
        """In the shapes of the inputs, all on the device of z."""
        of_z, of_keys, of_gates = (torch.zeros_like(x, dtype=dtype) for x in (z, keys, gates))
        of_temperature = z.new_zeros((), dtype=dtype) if isinstance(temperature, Tensor) else None
        return cls(of_z, of_keys, of_gates, of_temperature)

    def add_to_temperature(self, similarities: Tensor, grad: Tensor) -> None:
        """From a block's similarities and the gradient in them; still to be divided by -temperature."""
        if self.temperature is not None:
            self.temperature.add_((similarities * grad).sum())
