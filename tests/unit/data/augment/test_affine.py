from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simlap.data.augment import affine as module
from simlap.data.augment.affine import affine, shift_columns, shift_lines
from simlap.data.augment.geometry import Interpolation
from tests.unit.data.augment.images import noise

FILL = torch.tensor([10.0, 120.0, 255.0])


def _naive(image: Tensor, coefficients: list[float], interpolation: Interpolation) -> Tensor:
    """Pixel by pixel in float64; Pillow's kernels. image: [c, s, s]. Returns float64 [c, s, s], not yet whole numbers."""
    a, b, c, d, e, f = coefficients
    size, result = image.shape[-1], FILL[: len(image), None, None].double().repeat(1, *image.shape[1:])
    for row in range(size):
        for column in range(size):
            x, y = a * (column + 0.5) + b * (row + 0.5) + c, d * (column + 0.5) + e * (row + 0.5) + f
            if not (0 <= x < size and 0 <= y < size):
                continue
            total = torch.zeros(len(image), dtype=torch.float64)
            for j, of_row in _kernel(y - 0.5, interpolation):
                for i, of_column in _kernel(x - 0.5, interpolation):
                    place = min(max(j, 0), size - 1), min(max(i, 0), size - 1)
                    total += of_row * of_column * image[:, place[0], place[1]].double()
            result[:, row, column] = total.clamp(0, 255)
    return result


def _kernel(position: float, interpolation: Interpolation) -> list[tuple[int, float]]:
    base = int(np.floor(position))
    t = position - base
    if interpolation == "bilinear":
        return [(base, 1 - t), (base + 1, t)]
    near = [1 - 2 * u**2 + u**3 for u in (t, 1 - t)]
    far = [4 - 8 * u + 5 * u**2 - u**3 for u in (1 + t, 2 - t)]
    return [(base - 1, far[0]), (base, near[0]), (base + 1, near[1]), (base + 2, far[1])]


@settings(max_examples=20, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-0.5, 0.5)] * 4),
    shift=st.tuples(*[st.floats(-9, 9)] * 2),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_affine_is_the_naive_map(
    turn: tuple[float, ...], shift: tuple[float, ...], channels: int, interpolation: Interpolation
) -> None:
    images = noise(1, channels, 6)
    values = [1 + turn[0], turn[1], shift[0], turn[2], 1 + turn[3], shift[1]]
    coefficients = torch.tensor([values])
    ours = affine(images, coefficients, FILL[:channels], interpolation)[0].double()
    expected = _naive(images[0], coefficients[0].tolist(), interpolation)
    # a source within rounding of the image's border may fall on its other side
    assert float(((ours - expected).abs() > 1.02).double().mean()) < 0.03


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (3, 2), (3, 9), (1, 32)])
def test_columns_are_the_affine_map(channels: int, size: int, interpolation: Interpolation) -> None:
    images, generator = noise(20, channels, size), torch.Generator().manual_seed(0)
    slopes = torch.rand(20, generator=generator) - 0.5
    offsets = (torch.rand(20, generator=generator) - 0.5) * 2 * size
    offsets[:4] = torch.tensor([0.0, 1.0, -1.0, 0.5])
    slopes[:4] = 0
    coefficients = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(20, 1)
    coefficients[:, 3], coefficients[:, 5] = slopes, offsets
    shifts = slopes[:, None] * (torch.arange(size) + 0.5) + offsets[:, None]
    expected = affine(images, coefficients, FILL[:channels], interpolation)
    assert torch.equal(shift_columns(images, shifts, FILL[:channels], interpolation), expected)
    assert torch.equal(expected[0], images[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (3, 2), (3, 9), (1, 32)])
def test_lines_are_the_affine_map(channels: int, size: int, interpolation: Interpolation) -> None:
    images = noise(20, channels, size)
    offsets = (torch.rand(20, generator=torch.Generator().manual_seed(0)) - 0.5) * 2.5 * size
    offsets[:6] = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5, float(size)])
    coefficients = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(20, 1)
    coefficients[:, 5] = offsets
    expected = affine(images, coefficients, FILL[:channels], interpolation)
    assert torch.equal(shift_lines(images, offsets, FILL[:channels], interpolation), expected)
    assert torch.equal(expected[0], images[0])
    assert bool((expected[5] == FILL[:channels, None, None]).all())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_all_taps_at_once_are_those_one_by_one(interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU."""
    images = noise(10, 3, 16)
    coefficients = torch.tensor([0.9, 0.3, -1.2, -0.3, 0.9, 2.5]).repeat(10, 1)
    coefficients += torch.randn(10, 6, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = affine(images, coefficients, FILL, interpolation)
    monkeypatch.setattr(module, "_tap_by_tap", module._all_taps)
    ours = affine(images, coefficients, FILL, interpolation)
    assert int((ours.int() - expected.int()).abs().max()) <= 1
    assert float((ours != expected).float().mean()) < 1e-3
