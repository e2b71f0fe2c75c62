"""Moving what is drawn on the CPU to the images' device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    # from pageable memory the copy would wait for all work queued before it
    return tensor.pin_memory().to(device, non_blocking=True)


def constant(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 [n] on the device, without waiting for it."""
    return move(torch.tensor(values, dtype=torch.float32), device)
