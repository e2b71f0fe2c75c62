from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from simlap.data.channels import channel_statistics, with_channels


def _images(n: int = 5000, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_channel_statistics_are_those_of_the_pixels() -> None:
    images = _images()
    images[:, 1] //= 2
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), pixels.mean((0, 2, 3)), rtol=1e-12, atol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), expected, rtol=1e-12, atol=0)


def test_a_constant_channel_divides_by_one() -> None:
    assert channel_statistics(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_colours_become_grey_as_with_pillow() -> None:
    images = _images()
    grey = with_channels(images, 1)
    assert grey.shape == (5000, 1, 2, 2)
    for image, expected in list(zip(images, grey, strict=True))[::250]:
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert np.array_equal(np.asarray(pillow), expected[0].numpy())


def test_grey_is_repeated_and_the_right_number_left_alone() -> None:
    images = _images(3, 1)
    assert torch.equal(with_channels(images, 3), torch.cat([images] * 3, dim=1))
    assert with_channels(images, 1) is images
    with pytest.raises(ValueError, match="2 channels of 1"):
        with_channels(images, 2)
