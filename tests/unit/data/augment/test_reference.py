from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from simlap.config.schema import Augment
from simlap.data.augment import Augmenter, build_augmenter, to_input
from simlap.data.augment.reference import TimmAugmenter
from simlap.errors import ConfigError
from tests.unit.data.augment.images import counters, noise, smooth

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AUTHORS: dict[str, Any] = {
    "crop_scale": (0.7, 1.0), "interpolation": "bicubic", "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25,
}  # fmt: skip
OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
SIMCLR: dict[str, Any] = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "jitter": 0.8, "grey": 0.2, "blur": 0.5,
}  # fmt: skip


def test_the_field_chooses_the_pipeline() -> None:
    assert isinstance(build_augmenter(Augment(), 32, MEAN, STD), Augmenter)
    assert isinstance(build_augmenter(Augment(pipeline="timm"), 32, MEAN, STD), TimmAugmenter)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fields", [AUTHORS, SIMCLR])
def test_a_row_is_a_function_of_its_keys(channels: int, fields: dict[str, Any]) -> None:
    images = smooth(12, channels)
    augmenter = build_augmenter(Augment(pipeline="timm", **fields), 32, MEAN[:channels], STD[:channels])
    samples, copies = torch.arange(12) * 3, torch.arange(12) % 2
    draws = augmenter.draw(5, samples, copies)
    assert draws.shape == (12, 0)
    whole = augmenter(images, 5, samples, copies, draws)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    part = torch.tensor([7, 2])
    assert torch.equal(augmenter(images[part], 5, samples[part], copies[part]), whole[part])
    assert not torch.equal(augmenter(images, 5, samples, copies + 2), whole)
    assert not torch.equal(augmenter(images, 6, samples, copies), whole)


def test_the_programs_generators_stay_as_they_are() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    build_augmenter(Augment(pipeline="timm", **AUTHORS), 16, MEAN, STD)(noise(3), 1, *counters(3))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected  # noqa: NPY002


def test_everything_off_is_the_plain_input() -> None:
    images = noise(4)
    out = build_augmenter(Augment(pipeline="timm", **OFF), 16, MEAN, STD)(images, 1, *counters(4))
    torch.testing.assert_close(out, to_input(images, MEAN, STD), rtol=0, atol=1e-5)


def test_the_strongest_posterize_keeps_a_bit() -> None:
    """timm alone fails here: Pillow refuses 0 bits."""
    augment = Augment(pipeline="timm", rand_augment="rand-m10-n4-p1-inc1")
    out = build_augmenter(augment, 16, MEAN, STD)(noise(40), 1, *counters(40))
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"rotate": 5.0}, "rotate"),
        ({"translate": 0.1}, "translate"),
        ({"three_augment": True}, "three_augment"),
        ({"solarise": 0.2}, "solarise"),
        ({"rand_augment": "rand-m9", "hue": 0.1}, "hue"),
        ({"rand_augment": "rand-m9", "brightness": 0.1}, "brightness"),
        ({"rand_augment": "augmix-m3"}, "rand_augment"),
        ({"rand_augment": "rand-q9"}, "rand_augment"),
        ({"rand_augment": "rand-m9.5"}, "rand_augment"),
        ({"blur": 0.5, "blur_sigma": (0.1, 1.0)}, "blur_sigma"),
    ],
)
def test_what_timm_does_not_have_is_an_error(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_augmenter(Augment(pipeline="timm", **fields), 32, MEAN, STD)
    assert caught.value.key == f"data.augment.{key}"
    assert caught.value.value == fields[key]


def test_blur_of_small_images_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.augment\.blur: .*more than 11 pixels"):
        build_augmenter(Augment(pipeline="timm", blur=0.5), 8, MEAN, STD)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [AUTHORS, SIMCLR])
def test_the_batched_pipeline_is_timms_in_distribution(fields: dict[str, Any]) -> None:
    """Mean and spread of the images, and the histogram of all their values, over 300 images with 3 copies."""
    images = smooth(300).repeat(3, 1, 1, 1)
    samples, copies = torch.arange(900) % 300, torch.arange(900) // 300
    results = []
    for pipeline in ("batched", "timm"):
        augmenter = build_augmenter(Augment(pipeline=pipeline, **fields), 32, MEAN, STD)
        results.append(augmenter(images, 3, samples, copies))
    ours, theirs = results
    for statistic in ("mean", "spread", "roughness"):
        mine, other = (
            {"mean": x.mean((1, 2, 3)), "spread": x.std((1, 2, 3)), "roughness": x.diff().abs().mean((1, 2, 3))}[
                statistic
            ]
            for x in (ours, theirs)
        )
        error = float((mine.var() + other.var()).div(900).sqrt())  # of the difference of the means
        assert abs(float(mine.mean() - other.mean())) < 4 * error + 0.01
        assert float(mine.std() / other.std()) == pytest.approx(1, abs=0.1)
    bins = torch.linspace(-2.6, 2.6, 27)
    shares = [torch.histogram(x.flatten(), bins)[0] / x.numel() for x in results]
    assert float((shares[0] - shares[1]).abs().sum()) < 0.06
