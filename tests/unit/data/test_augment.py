from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from simlap import rng
from simlap.config.schema import Augment
from simlap.data import Augmenter, to_input
from simlap.data.augment import crop_boxes, erase_boxes, resample

OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
ALL: dict[str, Any] = {"rotate": 15.0, "translate": 0.1, "brightness": 0.4, "contrast": 0.4, "erase": 0.5}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _images(n: int, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def _rows(n: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n), torch.zeros(n, dtype=torch.int64)


def _augment(images: Tensor, **fields: Any) -> Tensor:
    size, channels = images.shape[-1], images.shape[1]
    return Augmenter(Augment(**fields), size, MEAN[:channels], STD[:channels])(images, 1, *_rows(len(images)))


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_off_is_the_plain_input(channels: int) -> None:
    images = _images(6, channels)
    expected = TF.normalize(images.float() / 255, list(MEAN[:channels]), list(STD[:channels]))
    torch.testing.assert_close(_augment(images, **OFF), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(to_input(images, MEAN[:channels], STD[:channels]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9, 32])
def test_resampling_the_whole_image_is_the_identity(size: int) -> None:
    images = _images(4, size=size)
    box = torch.tensor([[0.0, 0.0, size, size]]).expand(4, 4)
    zero = torch.zeros(4)
    for moves in ({}, {"angle": zero}, {"shift": torch.zeros(4, 2)}, {"flip": torch.zeros(4, dtype=torch.bool)}):
        torch.testing.assert_close(resample(images, box, size, **moves), images.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("out", [8, 16, 24])
def test_crop_is_torchvisions_resized_crop(out: int) -> None:
    images = _images(4)
    boxes = [(0, 0, 16, 16), (3, 1, 9, 12), (5, 6, 1, 10), (2, 4, 14, 3)]
    ours = resample(images, torch.tensor(boxes, dtype=torch.float32), out)
    for row, (top, left, height, width) in enumerate(boxes):
        theirs = TF.resized_crop(images[row].float(), top, left, height, width, [out, out], antialias=False)
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=2e-3)


def test_crop_after_flip_is_the_mirrored_crop() -> None:
    images = _images(2)
    box = torch.tensor([[3.0, 1.0, 9.0, 12.0]]).expand(2, 4)
    plain = resample(images, box, 16)
    both = resample(images, box, 16, flip=torch.tensor([True, False]))
    torch.testing.assert_close(both[0], plain[0].flip(-1), rtol=0, atol=2e-3)
    torch.testing.assert_close(both[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("degrees", [10.0, -35.0, 90.0])
def test_rotation_is_torchvisions(degrees: float) -> None:
    images = _images(1)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    ours = resample(images, box, 16, angle=torch.tensor([math.radians(degrees)]))
    theirs = TF.rotate(images.float(), degrees, interpolation=v2.InterpolationMode.BILINEAR)
    inside = TF.rotate(torch.ones_like(images).float(), degrees, interpolation=v2.InterpolationMode.BILINEAR) > 0.999
    assert inside.float().mean() > 0.7
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=2e-3)


def test_shift_moves_down_and_right_and_repeats_the_border() -> None:
    images = _images(1)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    moved = resample(images, box, 16, shift=torch.tensor([[2 / 16, 3 / 16]]))
    torch.testing.assert_close(moved[..., 2:, 3:], images[..., :-2, :-3].float(), rtol=0, atol=2e-3)
    torch.testing.assert_close(
        moved[..., :2, 3:], images[..., :1, :-3].float().expand(-1, -1, 2, -1), rtol=0, atol=2e-3
    )


def test_crop_boxes_stay_inside_and_follow_the_ranges() -> None:
    draws = rng.uniform(0, *_rows(4000), 4)
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


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_mirrors_the_right_share(probability: float) -> None:
    images = _images(1000, size=4)
    out, plain = _augment(images, **{**OFF, "flip": probability}), to_input(images, MEAN, STD)
    flipped = (out - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-3
    same = (out - plain).abs().amax((1, 2, 3)) < 1e-3
    assert (flipped ^ same).all()
    assert abs(float(flipped.float().mean()) - probability) < 0.06


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_is_torchvisions(channels: int) -> None:
    images = _images(50, channels) // 4 + 96  # mid-grey: no clamping
    augment = Augment(**OFF, brightness=0.2, contrast=0.3)
    augmenter = Augmenter(augment, 16, (0.0,) * channels, (1.0,) * channels)
    ours = augmenter(images, 3, *_rows(50)) * 255
    draws = augmenter.draw(3, *_rows(50))
    for row in range(50):
        brightness, contrast = 1 + (2 * draws[row, 8:10] - 1) * torch.tensor([0.2, 0.3])
        theirs = TF.adjust_brightness(images[row].float() / 255, float(brightness))
        theirs = TF.adjust_contrast(theirs, float(contrast)) * 255
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=0.1)


def test_colour_stays_in_range() -> None:
    images = _images(64)
    out = Augmenter(Augment(**OFF, brightness=1.0, contrast=1.0), 16, (0.0,) * 3, (1.0,) * 3)(images, 1, *_rows(64))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_erasing_fills_one_rectangle_with_normal_noise() -> None:
    images = _images(2000, 1, 16)
    plain = to_input(images, MEAN[:1], STD[:1])
    out = _augment(images, **OFF, erase=0.25)
    changed = (out != plain)[:, 0]
    rows = changed.any(2).any(1)
    assert abs(float(rows.float().mean()) - 0.25) < 0.05
    shares = []
    for mask in changed[rows]:
        lines, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        rectangle = mask[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]
        assert rectangle.all()
        shares.append(float(mask.float().mean()))
    assert min(shares) >= 0.01
    assert max(shares) <= 0.4
    noise = out[:, 0][changed]
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert bool(noise.isfinite().all())


@pytest.mark.parametrize("size", [1, 2, 8, 33])
def test_erase_boxes_stay_inside(size: int) -> None:
    top, left, height, width = erase_boxes(rng.uniform(0, *_rows(2000), 4), size)
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int(height.min()) >= 1
    assert int(width.min()) >= 1
    assert int((top + height).max()) <= size
    assert int((left + width).max()) <= size


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_a_row_depends_on_its_own_keys_alone(channels: int, size: int) -> None:
    images = _images(37, channels, size)
    augmenter = Augmenter(Augment(**ALL), size, MEAN[:channels], STD[:channels])
    samples, copies = torch.arange(37) * 7 % 37, torch.arange(37) % 3
    whole = augmenter(images, 5, samples, copies)
    for part in (torch.tensor([8]), torch.tensor([36, 0, 17]), torch.arange(1, 37, 3)):
        assert torch.equal(augmenter(images[part], 5, samples[part], copies[part]), whole[part])
    assert not torch.equal(augmenter(images, 5, samples, copies + 1), whole)
    assert not torch.equal(augmenter(images, 6, samples, copies), whole)


def test_copies_of_an_image_differ() -> None:
    image = _images(1).expand(3, -1, -1, -1)
    out = Augmenter(Augment(), 16, MEAN, STD)(image, 5, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[1], out[2])


def test_switching_one_transform_on_leaves_the_others_draws() -> None:
    samples, copies = _rows(20)
    few = Augmenter(Augment(), 16, MEAN, STD).draw(5, samples, copies)
    many = Augmenter(Augment(**ALL), 16, MEAN, STD).draw(5, samples, copies)
    assert few.shape[1] < many.shape[1]
    assert torch.equal(many[:, : few.shape[1]], few)


def test_draws_made_before_are_the_same() -> None:
    images, rows = _images(20), _rows(20)
    augmenter = Augmenter(Augment(**ALL), 16, MEAN, STD)
    assert torch.equal(augmenter(images, 5, *rows), augmenter(images, 5, *rows, augmenter.draw(5, *rows)))


def test_images_of_another_size_come_out_square() -> None:
    images = torch.full((3, 3, 10, 14), 100, dtype=torch.uint8)
    out = Augmenter(Augment(**OFF), 8, MEAN, STD)(images, 1, *_rows(3))
    torch.testing.assert_close(out, to_input(images[..., :8, :8], MEAN, STD), rtol=0, atol=1e-5)
