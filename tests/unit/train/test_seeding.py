"""The global generator draws what its key says."""

from __future__ import annotations

import torch

from simlap.train.seeding import seed


def test_the_same_as_torchs_own_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**62 + 5)
        wanted = torch.rand(3)
        seed(2**62 + 5, torch.device("cpu"))
        assert torch.equal(torch.rand(3), wanted)
