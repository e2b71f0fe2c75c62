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


def move_all(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on the device, in one transfer."""
    if device.type != "cuda":
        return [move(tensor, device) for tensor in tensors]
    packed = pack(tensors, pinned=True).to(device, non_blocking=True)
    return unpack(packed, tensors)


def pack(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """The bytes of CPU tensors one after the other, each at a multiple of 16, so that `unpack` can see them as they were."""
    packed = torch.empty(sum(_padded(tensor) for tensor in tensors), dtype=torch.uint8, pin_memory=pinned)
    for tensor, part in zip(tensors, packed.split([_padded(tensor) for tensor in tensors]), strict=True):
        part[: tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    return packed


def unpack(packed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the types and shapes of `tensors`, seen in the bytes that `pack` made of those."""
    parts = packed.split([_padded(tensor) for tensor in tensors])
    return [part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // 16) * 16
