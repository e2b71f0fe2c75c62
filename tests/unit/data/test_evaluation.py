from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from simlap.config.schema import DigitsData
from simlap.data import eval_batches, load_splits
from simlap.data.evaluation import eval_view

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("image_size", "eval_size"), [(32, 36), (28, 32), (24, 24), (16, 20), (33, 40)])
def test_the_view_is_that_of_pillow(interpolation: str, image_size: int, eval_size: int) -> None:
    mode = transforms.InterpolationMode(interpolation)
    pillow = transforms.Compose([transforms.Resize(eval_size, mode), transforms.CenterCrop(image_size)])
    view = eval_view(IMAGES, image_size, eval_size, interpolation)  # type: ignore[arg-type]
    assert view.shape == (6, 3, image_size, image_size)
    for image, seen in zip(IMAGES, view, strict=True):
        expected = np.asarray(pillow(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert np.abs(seen.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).max() <= 1


def test_values_beyond_the_range_are_clipped() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    view = eval_view(edge, 12, 12, "bicubic")
    assert view[0, 0, 0].tolist() == sorted(view[0, 0, 0].tolist()), "nothing wraps"
    assert view.max() == 255


def test_the_default_view_is_the_image() -> None:
    assert torch.equal(eval_view(IMAGES, 32, 32), IMAGES)


def test_batches_cover_the_part_in_order() -> None:
    splits = load_splits(DigitsData(source="digits"))
    batches = list(eval_batches(splits.test, splits, batch_size=150))
    assert [len(labels) for _, labels in batches] == [150, 150, 97]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == torch.float32
    assert torch.equal(labels, splits.test.labels)
    expected = (splits.test.images.double() / 255 - splits.mean[0]) / splits.std[0]
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-5)


def test_sizes_and_kernel_come_from_the_splits() -> None:
    data = DigitsData.model_validate(
        {
            "source": "digits",
            "image_size": 8,
            "stored_size": 12,
            "eval_size": 10,
            "augment": {"interpolation": "bicubic"},
        }
    )
    splits = load_splits(data)
    assert (splits.train.images.shape[-1], splits.image_size, splits.eval_size) == (12, 8, 10)
    images, _ = next(eval_batches(splits.test, splits))
    bilinear, _ = next(eval_batches(splits.test, replace(splits, interpolation="bilinear")))
    assert images.shape == (397, 1, 8, 8)
    assert not torch.equal(images, bilinear)
