from __future__ import annotations

import pytest
import torch
from PIL import ImageFilter
from torchvision.transforms.v2 import functional as TF

from simlap.data.augment.filters import blur
from tests.unit.data.augment.images import from_pillow, noise, smooth, to_pillow


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 16), (3, 40)])
def test_blur_is_torchvisions(sigma: float, channels: int, size: int) -> None:
    x = noise(3, channels, size).float()
    theirs = TF.gaussian_blur(x, [23, 23], [sigma, sigma])
    torch.testing.assert_close(blur(x, torch.full((3,), sigma)), theirs, rtol=0, atol=2e-3)


def test_each_image_has_its_own_sigma() -> None:
    x, sigma = noise(3).float(), torch.tensor([0.2, 1.0, 2.0])
    for row, theirs in enumerate(blur(x, sigma)):
        torch.testing.assert_close(theirs, blur(x[row : row + 1], sigma[row : row + 1])[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_small_images_are_blurred_with_a_smaller_kernel(size: int) -> None:
    flat = torch.full((2, 1, size, size), 37.0)
    torch.testing.assert_close(blur(flat, torch.tensor([0.1, 2.0])), flat)
    if size == 8:
        x = noise(2, 1, size).float()
        theirs = TF.gaussian_blur(x, [15, 15], [2.0, 2.0])
        torch.testing.assert_close(blur(x, torch.full((2,), 2.0)), theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_close_to_pillows_approximation(sigma: float) -> None:
    """DeiT III blurs with Pillow, which approximates the Gaussian by boxes."""
    images = smooth(5)
    theirs = torch.stack([from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(sigma))) for image in images])
    assert float((blur(images.float(), torch.full((5,), sigma)) - theirs).abs().mean()) < 1.5
