from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from simlap.data.augment import colour
from tests.unit.data.augment.images import noise, smooth


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
def test_saturation_is_torchvisions(channels: int, factor: float) -> None:
    x = noise(6, channels).float()
    factors = torch.full((6, 1, 1, 1), factor)
    theirs = TF.adjust_saturation(x / 255, factor) * 255
    torch.testing.assert_close(colour.saturation(x, factors), theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.37, 0.5])
def test_hue_is_torchvisions(channels: int, turn: float) -> None:
    x = torch.cat((noise(6, channels), smooth(6, channels, 16), torch.full((1, channels, 16, 16), 77))).float()
    theirs = TF.adjust_hue(x / 255, turn) * 255
    torch.testing.assert_close(colour.hue(x, torch.full((13, 1, 1), turn)), theirs, rtol=0, atol=0.05)


def test_each_image_has_its_own_factor() -> None:
    x = noise(3).float()
    factors = torch.tensor([0.2, 1.0, 1.5])
    whole = colour.saturation(x, factors.view(3, 1, 1, 1))
    turned = colour.hue(x, factors.view(3, 1, 1) / 5)
    for row, factor in enumerate(factors):
        assert torch.equal(whole[row], colour.saturation(x[row : row + 1], factor.view(1, 1, 1, 1))[0])
        assert torch.equal(turned[row], colour.hue(x[row : row + 1], factor.view(1, 1, 1) / 5)[0])


def test_grey_and_solarise_are_torchvisions() -> None:
    images = noise(6)
    torch.testing.assert_close(colour.grey(images.float()), TF.rgb_to_grayscale(images.float()), rtol=0, atol=1e-3)
    assert torch.equal(colour.grey(images[:, :1].float()), images[:, :1].float())
    assert torch.equal(colour.solarise(images.float()), TF.solarize(images, 128).float())
