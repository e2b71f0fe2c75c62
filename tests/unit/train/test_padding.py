"""Without the padding's products a convolution gives what it gave, values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from simlap.train.padding import skip_padding


def results(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Output, gradients of the parameters and of the images."""
    images = images.clone().requires_grad_()
    output = module(images)
    output.square().sum().backward()
    assert images.grad is not None
    return [output.detach(), images.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


def assert_same(plain: nn.Module, images: Tensor) -> None:
    other = copy.deepcopy(plain)
    skip_padding(other)
    assert other.state_dict().keys() == plain.state_dict().keys()
    for mine, wanted in zip(results(other, images), results(plain, images), strict=True):
        assert mine.shape == wanted.shape
        assert torch.allclose(mine, wanted, rtol=1e-12, atol=1e-12)


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_any_convolution(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias: bool,
    last: bool,
) -> None:
    assume(all(s + 2 * padding >= dilation * (k - 1) + 1 for s, k in zip(size, kernel, strict=True)))
    torch.manual_seed(0)
    plain = nn.Conv2d(
        4, 6, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias, dtype=torch.float64
    )
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    if last:
        plain, images = plain.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    assert_same(plain, images)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_other_paddings_are_left_alone(options: dict[str, object]) -> None:
    assert_same(nn.Conv2d(2, 3, 1, dtype=torch.float64, **options), torch.randn(2, 2, 1, 1, dtype=torch.float64))  # type: ignore[arg-type]


def test_only_a_single_position_is_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    convolved: list[int] = []
    plain = torch.nn.functional.conv2d

    def conv2d(images: Tensor, *rest: Any) -> Tensor:
        convolved.append(images.shape[-1])
        return plain(images, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    module = nn.Conv2d(2, 3, 3, padding=1)
    skip_padding(module)
    for size in (1, 2, 3):
        module(torch.randn(2, 2, size, size))
    assert convolved == [2, 3]
