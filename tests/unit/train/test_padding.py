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


def test_what_is_mostly_padding_is_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    convolved: list[tuple[int, int]] = []
    plain = torch.nn.functional.conv2d

    def conv2d(images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], *rest: Any) -> Tensor:
        convolved.append((images.shape[-1], stride[0]))
        return plain(images, weight, bias, stride, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    for stride in (1, 2):
        module = nn.Conv2d(2, 3, 3, padding=1, stride=stride)
        skip_padding(module)
        for size in (1, 2, 3, 4):
            module(torch.randn(2, 2, size, size))
    # 2 x 2 in and out: 16 products of the kernel's 36; 3 x 3 or more meets most taps
    assert convolved == [(3, 1), (4, 1), (3, 2), (4, 2)]


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_it_has_the_type_of_a_convolution(bias: bool) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, bias=bias)
    other = copy.deepcopy(plain)
    skip_padding(other)
    images = torch.randn(5, 4, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, mine = plain(images), other(images)
        wanted.float().sum().backward()
        mine.float().sum().backward()
    assert mine.dtype == wanted.dtype == torch.bfloat16
    assert mine.float().isclose(wanted.float(), rtol=0.02, atol=0.02).all()
    assert plain.weight.grad is not None
    assert other.weight.grad is not None
    assert other.weight.grad.dtype == torch.float32
    assert other.weight.grad.isclose(plain.weight.grad, rtol=0.02, atol=0.2).all()
