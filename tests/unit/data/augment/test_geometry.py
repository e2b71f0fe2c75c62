from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from simlap import rng
from simlap.data.augment import geometry
from simlap.data.augment.geometry import Interpolation, crop_boxes, resample, resized_crop
from tests.unit.data.augment.images import counters, from_pillow, noise, smooth, to_pillow


@pytest.mark.parametrize("size", [8, 9, 32])
def test_resampling_the_whole_image_is_the_identity(size: int) -> None:
    images = noise(4, size=size)
    box = torch.tensor([[0.0, 0.0, size, size]]).expand(4, 4)
    zero = torch.zeros(4)
    none = torch.zeros(4, dtype=torch.bool)
    cases: tuple[dict[str, Any], ...] = ({}, {"angle": zero}, {"shift": torch.zeros(4, 2)}, {"flip": none})
    for moves in cases:
        torch.testing.assert_close(resample(images, box, size, **moves), images.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("out", [8, 16, 24])
def test_crop_is_torchvisions_resized_crop(out: int) -> None:
    images = noise(4)
    boxes = [(0, 0, 16, 16), (3, 1, 9, 12), (5, 6, 1, 10), (2, 4, 14, 3)]
    ours = resample(images, torch.tensor(boxes, dtype=torch.float32), out)
    for row, (top, left, height, width) in enumerate(boxes):
        theirs = TF.resized_crop(images[row].float(), top, left, height, width, [out, out], antialias=False)
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=2e-3)


def test_crop_after_flip_is_the_mirrored_crop() -> None:
    images = noise(2)
    box = torch.tensor([[3.0, 1.0, 9.0, 12.0]]).expand(2, 4)
    plain = resample(images, box, 16)
    both = resample(images, box, 16, flip=torch.tensor([True, False]))
    torch.testing.assert_close(both[0], plain[0].flip(-1), rtol=0, atol=2e-3)
    torch.testing.assert_close(both[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("degrees", [10.0, -35.0, 90.0])
def test_rotation_is_torchvisions(degrees: float) -> None:
    images = noise(1)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    ours = resample(images, box, 16, angle=torch.tensor([math.radians(degrees)]))
    theirs = TF.rotate(images.float(), degrees, interpolation=v2.InterpolationMode.BILINEAR)
    inside = TF.rotate(torch.ones_like(images).float(), degrees, interpolation=v2.InterpolationMode.BILINEAR) > 0.999
    assert inside.float().mean() > 0.7
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=2e-3)


def test_shift_moves_down_and_right_and_repeats_the_border() -> None:
    images = noise(1)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    moved = resample(images, box, 16, shift=torch.tensor([[2 / 16, 3 / 16]]))
    torch.testing.assert_close(moved[..., 2:, 3:], images[..., :-2, :-3].float(), rtol=0, atol=2e-3)
    torch.testing.assert_close(
        moved[..., :2, 3:], images[..., :1, :-3].float().expand(-1, -1, 2, -1), rtol=0, atol=2e-3
    )


def test_crop_boxes_stay_inside_and_follow_the_ranges() -> None:
    draws = rng.uniform(0, *counters(4000), 4)
    top, left, height, width = crop_boxes(draws, (0.3, 0.6), (0.8, 1.25), 20, 30).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 20 + 1e-4).all()
    assert (left + width <= 30 + 1e-4).all()
    area, ratio = height * width / 600, width / height
    assert 0.3 - 1e-4 <= float(area.min()) < 0.31
    assert 0.59 < float(area.max()) <= 0.6 + 1e-4
    assert 0.8 - 1e-4 <= float(ratio.min()) < 0.81
    assert 1.24 < float(ratio.max()) <= 1.25 + 1e-4
    assert abs(float(area.mean()) - 0.45) < 0.01
    assert abs(float(ratio.log().mean())) < 0.01


def test_a_side_longer_than_the_image_is_cut() -> None:
    draws = torch.tensor([[0.999, 0.001, 0.5, 0.5]])
    top, left, height, width = crop_boxes(draws, (0.7, 1.0), (0.75, 4 / 3), 8, 8)[0].tolist()
    assert (top, height) == (0.0, 8.0)
    assert left + width <= 8
    assert width == pytest.approx(8 * math.sqrt(0.75), rel=1e-2)


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (40, 32), (100, 32), (24, 32), (9, 8)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crop_is_pillows(stored: int, size: int, interpolation: Interpolation) -> None:
    images, generator = smooth(20, size=stored), np.random.default_rng(1)
    boxes = []
    for _ in images:
        height, width = (int(v) for v in generator.integers(stored // 2, stored + 1, size=2))
        boxes.append(
            (int(generator.integers(stored - height + 1)), int(generator.integers(stored - width + 1)), height, width)
        )
    ours = resized_crop(images, torch.tensor(boxes), size, interpolation=interpolation)
    kernel = Image.Resampling[interpolation.upper()]
    theirs = torch.stack(
        [
            from_pillow(to_pillow(image).crop((left, top, left + width, top + height)).resize((size, size), kernel))
            for image, (top, left, height, width) in zip(images, boxes, strict=True)
        ]
    )
    difference = (ours.to(torch.int16) - theirs).abs().to(torch.float32)
    assert float(difference.max()) <= 2
    assert float(difference.mean()) < 0.1


def test_resized_crop_mirrors_and_keeps_the_whole_image() -> None:
    images = noise(4)
    box = torch.tensor([[0, 0, 16, 16]]).expand(4, 4)
    flip = torch.tensor([True, False, True, False])
    assert torch.equal(resized_crop(images, box, 16), images)
    assert torch.equal(resized_crop(images, box, 16, flip=flip)[flip], images[flip].flip(-1))


def test_resized_crop_keeps_a_constant_image_and_its_range() -> None:
    boxes = crop_boxes(rng.uniform(0, *counters(200), 4), (0.1, 1.0), (0.5, 2.0), 20, 14, whole=True)
    flat = torch.full((200, 3, 20, 14), 201, dtype=torch.uint8)
    for interpolation in ("bilinear", "bicubic"):
        assert bool((resized_crop(flat, boxes, 16, interpolation=interpolation) == 201).all())


def test_whole_boxes_stay_inside_and_reach_every_place() -> None:
    boxes = crop_boxes(rng.uniform(0, *counters(6000), 4), (0.7, 1.0), (0.75, 4 / 3), 8, 9, whole=True)
    assert boxes.dtype == torch.int64
    top, left, height, width = boxes.unbind(1)
    assert (top + height <= 8).all()
    assert (left + width <= 9).all()
    for start, length, side in ((top, height, 8), (left, width, 9)):
        for value in length.unique().tolist():
            assert start[length == value].unique().tolist() == list(range(side - value + 1))
    assert crop_boxes(torch.full((1, 4), 0.001), (1e-4, 1e-3), (1.0, 1.0), 8, 9, whole=True)[0, 2:].tolist() == [1, 1]


def test_whole_boxes_are_torchvisions_where_it_does_not_draw_again() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor([v2.RandomResizedCrop.get_params(image, [0.2, 0.6], [0.8, 1.25]) for _ in range(4000)])
    ours = crop_boxes(rng.uniform(0, *counters(4000), 4), (0.2, 0.6), (0.8, 1.25), 32, 32, whole=True)
    for place in range(4):
        assert ks_2samp(ours[:, place].numpy(), theirs[:, place].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_maps_of_all_crops_are_those_of_the_crops_that_occur(
    interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few enough are kept; else they are made for each batch."""
    images, draws = noise(40), rng.uniform(0, *counters(40), 5)
    boxes = crop_boxes(draws, (0.3, 1.0), (0.75, 4 / 3), 16, 16, whole=True)
    kept = resized_crop(images, boxes, 12, flip=draws[:, 4] < 0.5, interpolation=interpolation)
    monkeypatch.setattr(geometry, "_KEPT", 0)
    assert torch.equal(resized_crop(images, boxes, 12, flip=draws[:, 4] < 0.5, interpolation=interpolation), kept)
