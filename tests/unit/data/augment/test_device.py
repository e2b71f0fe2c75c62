from __future__ import annotations

import torch

from simlap.data.augment.device import move_all, pack, unpack


def test_packed_tensors_come_out_as_they_were() -> None:
    tensors = [
        torch.arange(5),
        torch.empty(0, 256, dtype=torch.uint8),
        torch.rand(3, 7)[:, ::2],
        torch.randint(0, 256, (5, 3), dtype=torch.uint8),
        torch.rand(2, 2, 1).double(),
        torch.tensor([True, False, True]),
    ]
    packed = pack(tensors)
    assert packed.dtype == torch.uint8
    for before, after in zip(tensors, unpack(packed, tensors), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.rand(3)
    assert move_all([tensor], torch.device("cpu"))[0] is tensor
