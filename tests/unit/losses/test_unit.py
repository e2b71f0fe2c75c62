"""Rows of unit size."""

from __future__ import annotations

import torch

from simlap.losses.unit import cosine_logits, inverse_count


def test_cosine_logits_are_the_librarys_cosine() -> None:
    z, keys = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    expected = torch.cosine_similarity(z[:, None], keys[None], dim=-1) / 0.3
    torch.testing.assert_close(cosine_logits(z, keys, 0.3), expected)
    torch.testing.assert_close(cosine_logits(z, keys, torch.tensor(0.3, dtype=torch.float64)), expected)


def test_nan_stays_nan() -> None:
    """A broken network must not look like a zero vector."""
    z = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])
    logits = cosine_logits(z, torch.ones(3, 2), 1.0)
    assert logits[0].isnan().all()
    assert not logits[1].isnan().any()


def test_inverse_count() -> None:
    device = torch.device("cpu")
    assert inverse_count(4, device) == 0.25
    assert inverse_count(torch.tensor(8), device) == 0.125
    assert inverse_count(0.0, device) == 0
    assert inverse_count(torch.tensor(3), device).dtype == torch.float64
