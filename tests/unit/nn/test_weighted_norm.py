"""Batch norm of weighted rows against torch's of the repeated rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simlap.nn.weighted_norm import weighted_batch_norm
from simlap.train.distributed import SyncBatchNorm

E = 4
NORMS: dict[str, Any] = {
    "usual": lambda: nn.BatchNorm1d(E),
    "other settings": lambda: nn.BatchNorm1d(E, eps=1e-2, momentum=0.3),
    "cumulative": lambda: nn.BatchNorm1d(E, momentum=None),
    "no affine": lambda: nn.BatchNorm1d(E, affine=False),
    "no statistics": lambda: nn.BatchNorm1d(E, track_running_stats=False),
    "synchronised, alone": lambda: SyncBatchNorm(nn.BatchNorm1d(E)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    norm: nn.Module = NORMS[name]().to(dtype)
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm


def assert_equal_to_repeated_rows(norm: Any, x: Tensor, counts: Tensor, tolerance: float) -> None:
    """Three steps: outputs, gradients and buffers; then one in evaluation mode."""
    twin = copy.deepcopy(norm)
    index = torch.arange(len(counts)).repeat_interleave(counts)
    for step in range(4):
        training = step < 3
        norm.train(training)
        twin.train(training)
        rows = (x + step * x.square() / 8).requires_grad_()
        rows.retain_grad()
        repeated = rows.detach().clone().requires_grad_()
        out = weighted_batch_norm(norm, rows, counts, int(counts.sum()))
        expected = twin(repeated[index])
        weights = torch.randn(expected.shape, dtype=x.dtype)
        of_rows = torch.zeros_like(rows).index_add_(0, index, weights)
        for module in (norm, twin):
            module.zero_grad()
        out.backward(of_rows)
        expected.backward(weights)
        pairs = [(out[index], expected), (rows.grad, repeated.grad)]
        pairs += [(p.grad, q.grad) for p, q in zip(norm.parameters(), twin.parameters(), strict=True)]
        pairs += list(zip(norm.buffers(), twin.buffers(), strict=True))
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NORMS)
def test_is_that_of_the_repeated_rows(name: str) -> None:
    assert_equal_to_repeated_rows(
        make(name), torch.randn(5, E, dtype=torch.float64), torch.tensor([3, 1, 0, 7, 2]), 1e-11
    )


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 1), st.integers(0, 99))
def test_any_multiplicities(counts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(len(counts), E, dtype=torch.float64)
    # a single distinct row has variance 0: its gradient is a difference of large numbers
    assert_equal_to_repeated_rows(make("usual"), x, torch.tensor(counts), 1e-8)


def test_features_far_from_zero_in_single_precision() -> None:
    assert_equal_to_repeated_rows(
        make("usual", torch.float32), torch.randn(5, E) + 300, torch.tensor([3, 1, 9, 7, 2]), 2e-3
    )


def test_half_precision_keeps_its_type() -> None:
    norm = make("usual", torch.float32)
    x = torch.randn(5, E).bfloat16().requires_grad_()
    out = weighted_batch_norm(norm, x, torch.tensor([3, 1, 2, 7, 2]), 15)  # type: ignore[arg-type]
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["usual", "synchronised, alone"])
def test_one_row_is_refused_in_training_only(name: str) -> None:
    norm: Any = make(name)
    x, counts = torch.randn(1, E, dtype=torch.float64), torch.tensor([1])
    with pytest.raises(ValueError, match="more than 1 row in training mode, got 1"):
        weighted_batch_norm(norm, x, counts, 1)
    torch.testing.assert_close(weighted_batch_norm(norm.eval(), x, counts, 1), norm(x))
