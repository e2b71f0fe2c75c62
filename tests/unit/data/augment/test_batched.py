from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simlap import rng
from simlap.config.schema import Augment
from simlap.data.augment import Augmenter, batched, to_input
from simlap.data.augment.filters import blur
from tests.unit.data.augment.images import counters, noise, smooth

OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
ALL: dict[str, Any] = {"rotate": 15.0, "translate": 0.1, "brightness": 0.4, "contrast": 0.4, "erase": 0.5}
NEW: dict[str, Any] = {
    "saturation": 0.4, "hue": 0.1, "jitter": 0.8, "grey": 0.2, "blur": 0.5, "solarise": 0.2,
}  # fmt: skip
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _augment(images: Tensor, **fields: Any) -> Tensor:
    size, channels = images.shape[-1], images.shape[1]
    return Augmenter(Augment(**fields), size, MEAN[:channels], STD[:channels])(images, 1, *counters(len(images)))


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_off_is_the_plain_input(channels: int) -> None:
    images = noise(6, channels)
    expected = TF.normalize(images.float() / 255, list(MEAN[:channels]), list(STD[:channels]))
    torch.testing.assert_close(_augment(images, **OFF), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(to_input(images, MEAN[:channels], STD[:channels]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_mirrors_the_right_share(probability: float) -> None:
    images = noise(1000, size=4)
    out, plain = _augment(images, **{**OFF, "flip": probability}), to_input(images, MEAN, STD)
    flipped = (out - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-3
    same = (out - plain).abs().amax((1, 2, 3)) < 1e-3
    assert (flipped ^ same).all()
    assert abs(float(flipped.float().mean()) - probability) < 0.06


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_is_torchvisions(channels: int) -> None:
    images = noise(50, channels) // 4 + 96  # mid-grey: no clamping
    augment = Augment(**OFF, brightness=0.2, contrast=0.3)
    augmenter = Augmenter(augment, 16, (0.0,) * channels, (1.0,) * channels)
    ours = augmenter(images, 3, *counters(50)) * 255
    draws = augmenter.draw(3, *counters(50))
    for row in range(50):
        brightness, contrast = 1 + (2 * draws[row, 8:10] - 1) * torch.tensor([0.2, 0.3])
        theirs = TF.adjust_brightness(images[row].float() / 255, float(brightness))
        theirs = TF.adjust_contrast(theirs, float(contrast)) * 255
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=0.1)


def test_colour_stays_in_range() -> None:
    images = noise(64)
    out = Augmenter(Augment(**OFF, brightness=1.0, contrast=1.0), 16, (0.0,) * 3, (1.0,) * 3)(images, 1, *counters(64))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_erasing_fills_one_rectangle_with_normal_noise() -> None:
    images = noise(2000, 1, 16)
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
    filling = out[:, 0][changed]
    assert abs(float(filling.mean())) < 0.02
    assert abs(float(filling.std()) - 1) < 0.02
    assert bool(filling.isfinite().all())


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_a_row_depends_on_its_own_keys_alone(channels: int, size: int) -> None:
    images = noise(37, channels, size)
    augmenter = Augmenter(Augment(**ALL), size, MEAN[:channels], STD[:channels])
    samples, copies = torch.arange(37) * 7 % 37, torch.arange(37) % 3
    whole = augmenter(images, 5, samples, copies)
    for part in (torch.tensor([8]), torch.tensor([36, 0, 17]), torch.arange(1, 37, 3)):
        assert torch.equal(augmenter(images[part], 5, samples[part], copies[part]), whole[part])
    assert not torch.equal(augmenter(images, 5, samples, copies + 1), whole)
    assert not torch.equal(augmenter(images, 6, samples, copies), whole)


def test_copies_of_an_image_differ() -> None:
    image = noise(1).expand(3, -1, -1, -1)
    out = Augmenter(Augment(), 16, MEAN, STD)(image, 5, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[1], out[2])


def test_switching_one_transform_on_leaves_the_others_draws() -> None:
    samples, copies = counters(20)
    few = Augmenter(Augment(), 16, MEAN, STD).draw(5, samples, copies)
    many = Augmenter(Augment(**ALL), 16, MEAN, STD).draw(5, samples, copies)
    assert few.shape[1] < many.shape[1]
    assert torch.equal(many[:, : few.shape[1]], few)


def test_draws_made_before_are_the_same() -> None:
    images, rows = noise(20), counters(20)
    augmenter = Augmenter(Augment(**ALL), 16, MEAN, STD)
    assert torch.equal(augmenter(images, 5, *rows), augmenter(images, 5, *rows, augmenter.draw(5, *rows)))


def test_images_of_another_size_come_out_square() -> None:
    images = torch.full((3, 3, 10, 14), 100, dtype=torch.uint8)
    out = Augmenter(Augment(**OFF), 8, MEAN, STD)(images, 1, *counters(3))
    torch.testing.assert_close(out, to_input(images[..., :8, :8], MEAN, STD), rtol=0, atol=1e-5)


# What the first release gave, for images made of keyed draws: runs that began with it go on with the same augmentation.
@pytest.mark.parametrize(
    ("channels", "size", "fields", "draws", "values", "total"),
    [
        (
            3,
            16,
            {},
            "8f76348c2ae72c06",
            [1.557, -0.449, -0.848, -0.112, -0.25, 1.747, 1.489, 0.517, 1.661, -2.089, -0.504, -1.243],
            9797.4024,
        ),
        (
            3,
            16,
            ALL,
            "e822b4f294a19bab",
            [-2.239, 0.221, 1.831, -0.705, 0.396, 1.092, -1.18, 1.78, 0.455, -1.767, 0.313, 0.728],
            11319.1447,
        ),
        (
            1,
            8,
            {"erase": 0.25},
            "e822b4f294a19bab",
            [2.191, -0.722, -0.937, -0.743, 1.188, 0.801, -0.514, 0.492, 0.856, 0.052, 1.333],
            980.9495,
        ),
    ],
)
def test_settings_of_the_first_release_give_its_results(
    channels: int, size: int, fields: dict[str, Any], draws: str, values: list[float], total: float
) -> None:
    shape = (12, channels, size, size)
    images = (rng.uniform(7, *counters(12), channels * size**2) * 256).to(torch.uint8).view(shape)
    augmenter = Augmenter(Augment(**fields), size, MEAN[:channels], STD[:channels])
    samples, copies = torch.arange(12) * 5, torch.arange(12) % 3
    drawn = augmenter.draw(9, samples, copies)
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16] == draws
    out = augmenter(images, 9, samples, copies)
    seen = out.flatten()[:: out.numel() // 12 + 7]
    torch.testing.assert_close(seen, torch.tensor(values), rtol=0, atol=1e-3)
    assert float((out.double() ** 2).sum()) == pytest.approx(total, rel=1e-5)


def test_new_transforms_leave_the_old_draws_where_they_were() -> None:
    samples, copies = counters(20)
    old = Augmenter(Augment(**ALL), 16, MEAN, STD).draw(5, samples, copies)
    new = Augmenter(Augment(**ALL, **NEW), 16, MEAN, STD).draw(5, samples, copies)
    assert new.shape[1] > old.shape[1]
    assert torch.equal(new[:, : old.shape[1]], old)


@pytest.mark.parametrize("extra", [{"rand_augment": "rand-m9-mstd0.5-inc1"}, {"three_augment": True}])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_in_any_batch(extra: dict[str, Any], data: st.DataObject) -> None:
    channels, size = data.draw(st.sampled_from([(1, 8), (3, 16), (3, 9)]))
    interpolation = data.draw(st.sampled_from(["bilinear", "bicubic"]))
    stored = data.draw(st.sampled_from([size, size + 5]))
    images = smooth(24, channels, stored)
    fields = {**ALL, **NEW, **extra, "interpolation": interpolation}
    augmenter = Augmenter(Augment(**fields), size, MEAN[:channels], STD[:channels])
    samples, copies = torch.arange(24) * 7 % 24, torch.arange(24) % 3
    whole = augmenter(images, 5, samples, copies)
    assert whole.shape == (24, channels, size, size)
    assert bool(whole.isfinite().all())
    part = torch.tensor(data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=9, unique=True)))
    again = augmenter(images[part], 5, samples[part], copies[part])
    # the blur's matrix products may round otherwise in another batch; all else is exact
    torch.testing.assert_close(again, whole[part], rtol=0, atol=1e-4)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_share_a_batch_make_its_rows(workers: int) -> None:
    fields: dict[str, Any] = {"interpolation": "bicubic", "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
    images, (samples, copies) = smooth(64), counters(64)
    augmenter = Augmenter(Augment(**fields), 32, MEAN, STD)
    whole = augmenter(images, 5, samples, copies)
    for rank in range(workers):
        part = slice(rank, None, workers)
        assert torch.equal(augmenter(images[part], 5, samples[part], copies[part]), whole[part])
    assert not torch.equal(augmenter(images, 5, samples, copies + 1), whole)


def test_images_are_left_as_they_are() -> None:
    images = smooth(16)
    before = images.clone()
    for fields in ({**OFF, **NEW}, {**OFF, "rand_augment": "rand-m9-inc1"}, {**OFF, "three_augment": True}):
        Augmenter(Augment(**fields), 32, MEAN, STD)(images, 1, *counters(16))
        assert torch.equal(images, before)


@pytest.mark.parametrize("fields", [OFF, {}, {**OFF, "rand_augment": "rand-m9-inc1"}, {"erase": 1.0}])
def test_a_network_can_learn_from_the_result(fields: dict[str, Any]) -> None:
    """It is made in part without what gradients need."""
    images = _augment(smooth(4), **fields)
    weight = torch.ones(2, 3, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(images, weight).square().sum().backward()
    assert weight.grad is not None
    assert not images.is_inference()


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_jitter_changes_the_right_share(jitter: float, share: float) -> None:
    images = smooth(400, size=4)
    fields: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    out = _augment(images, **OFF, **fields, jitter=jitter)
    changed = (out - to_input(images, MEAN, STD)).abs().amax((1, 2, 3)) > 1e-3
    assert abs(float(changed.float().mean()) - share) < 0.07


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("grey", lambda images: TF.rgb_to_grayscale(images.float(), 3)),
        ("solarise", lambda images: TF.solarize(images, 128).float()),
    ],
)
@pytest.mark.parametrize("probability", [0.2, 1.0])
def test_grey_and_solarise_change_the_right_share(field: str, expected: Any, probability: float) -> None:
    images = smooth(400, size=4)
    fields: dict[str, Any] = {**OFF, field: probability}
    augmenter = Augmenter(Augment(**fields), 4, (0.0,) * 3, (1.0,) * 3)
    out = augmenter(images, 1, *counters(400)) * 255
    changed = (out - expected(images)).abs().amax((1, 2, 3)) < 1.0
    plain = (out - images).abs().amax((1, 2, 3)) < 1e-2
    assert bool((changed | plain).all())
    assert abs(float(changed.float().mean()) - probability) < 0.07


def test_three_augment_does_one_of_three() -> None:
    images = smooth(600, size=16)
    augment = Augment(**OFF, three_augment=True, blur_sigma=(0.5, 1.5))
    augmenter = Augmenter(augment, 16, (0.0,) * 3, (1.0,) * 3)
    out = augmenter(images, 1, *counters(600)) * 255
    grey = (out.amax(1) - out.amin(1)).amax((1, 2)) < 1e-2
    solarised = (out - TF.solarize(images, 128)).abs().amax((1, 2, 3)) < 1e-2
    assert not bool((grey & solarised).any())
    for kind in (grey, solarised, ~grey & ~solarised):
        assert abs(float(kind.float().mean()) - 1 / 3) < 0.06
    rows = ~grey & ~solarised
    draws = augmenter.draw(1, *counters(600))[rows]
    sigma = 0.5 + draws[:, batched._THREE_SIGMA] * (1.5 - 0.5)
    torch.testing.assert_close(out[rows], blur(images[rows].float(), sigma), rtol=0, atol=1e-2)
    assert float((out[rows] - images[rows]).abs().amax((1, 2, 3)).min()) > 1


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_blur_changes_the_right_share_by_its_own_sigma(probability: float) -> None:
    images = smooth(300, size=16)
    augmenter = Augmenter(
        Augment(**OFF, blur=probability, blur_sigma=(0.5, 1.5)), 16, (0.0,) * 3, (1.0,) * 3
    )  # fmt: skip
    out = augmenter(images, 1, *counters(300)) * 255
    changed = (out - images).abs().amax((1, 2, 3)) > 1
    assert abs(float(changed.float().mean()) - probability) < 0.08
    torch.testing.assert_close(out[~changed], images[~changed].float(), rtol=0, atol=1e-2)
    sigma = 0.5 + augmenter.draw(1, *counters(300))[changed, batched._SIGMA]
    assert float(sigma.max() - sigma.min()) > 0.9
    torch.testing.assert_close(out[changed], blur(images[changed].float(), sigma), rtol=0, atol=1e-2)


def test_bicubic_crop_with_rotation_stays_in_range() -> None:
    images = noise(20)
    fields: dict[str, Any] = {"interpolation": "bicubic", "rotate": 20.0, "translate": 0.2}
    out = Augmenter(Augment(**fields), 16, (0.0,) * 3, (1.0,) * 3)(images, 1, *counters(20))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("extra", [{"rand_augment": "rand-m9-mstd0.5-inc1"}, {"three_augment": True}])
def test_on_a_gpu_nothing_waits_and_the_rows_are_the_same(extra: dict[str, Any]) -> None:
    images, rows = smooth(32), counters(32)
    fields = {**ALL, **NEW, **extra, "interpolation": "bicubic"}
    augmenter = Augmenter(Augment(**fields), 32, MEAN, STD)
    here = images.cuda()
    augmenter(here, 5, *rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = augmenter(here, 5, *rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = augmenter(images, 5, *rows)
    # a grey level where a sum falls on the other side of a whole number
    assert float((out.cpu() - expected).abs().mean()) < 0.01
