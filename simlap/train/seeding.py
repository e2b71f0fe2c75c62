"""The global random state that dropout, stochastic depth and some optimisers draw from."""

from __future__ import annotations

import torch


def seed(key: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device. `torch.manual_seed` looks for all there could be, several times a
    step."""
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
