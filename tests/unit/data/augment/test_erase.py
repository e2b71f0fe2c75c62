from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing

from simlap import rng
from simlap.data.augment.erase import erase, erase_boxes
from tests.unit.data.augment.images import counters


@pytest.mark.parametrize("size", [1, 2, 8, 33])
def test_erase_boxes_stay_inside(size: int) -> None:
    top, left, height, width = erase_boxes(rng.uniform(0, *counters(2000), 4), size)
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int(height.min()) >= 1
    assert int(width.min()) >= 1
    assert int((top + height).max()) <= size
    assert int((left + width).max()) <= size


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 7), (3, 5), (2, 1)])
def test_noise_is_that_of_drawing_whole_images(channels: int, size: int) -> None:
    """The naive twin: all draws of an image, then the rectangle cut out."""
    x = torch.zeros(30, channels, size, size)
    rows, samples, copies = torch.arange(0, 30, 2), torch.arange(15) * 11, torch.arange(15) % 4
    boxes = erase_boxes(rng.uniform(1, *counters(15), 4), size)
    draws = rng.uniform(9, samples, copies, x[0].numel())
    expected = x.clone()
    for row, values, (top, left, height, width) in zip(rows.tolist(), draws, boxes.T.tolist(), strict=True):
        part = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[row][part] = torch.special.ndtri(values).view(channels, size, size)[part]
    erase(x, rows, boxes, 9, samples, copies)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert bool((x[1::2] == 0).all())


def test_no_row_to_erase() -> None:
    x, none = torch.zeros(3, 3, 8, 8), torch.empty(0, dtype=torch.int64)
    erase(x, none, torch.empty(4, 0, dtype=torch.int64), 9, none, none)
    assert bool((x == 0).all())


def test_areas_and_ratios_are_timms() -> None:
    """Away from timm's second attempts, which only rectangles higher or wider than the image need."""
    _, _, height, width = erase_boxes(rng.uniform(3, *counters(4000), 4), 64).to(torch.float32)
    area, ratio = height * width / 64**2, height / width
    fits = (height < 64) & (width < 64)
    assert float(fits.float().mean()) > 0.9
    assert abs(float(area[fits].mean()) - (0.02 + 1 / 3) / 2) < 0.01
    assert abs(float(ratio[fits].log().mean())) < 0.04
    timm = []
    eraser = RandomErasing(1.0, mode="pixel", device="cpu")
    random.seed(0)
    for _ in range(1500):
        image = torch.zeros(1, 64, 64)
        eraser(image)
        timm.append(float((image != 0).float().mean()))
    assert ks_2samp(area[fits].numpy(), timm).pvalue > 0.01
