from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from simlap.config.schema import DigitsData, Validation
from simlap.data import inspect_data, load_splits


def test_parts_are_the_first_1400_and_the_last_397_images() -> None:
    splits = load_splits(DigitsData(source="digits", validation="none"))
    raw = load_digits()
    assert splits.val is None
    assert splits.train.images.shape == (1400, 1, 8, 8)
    assert splits.test.images.shape == (397, 1, 8, 8)
    assert splits.channels == 1
    assert splits.class_names == tuple("0123456789")
    expected = (torch.tensor(raw.images) * 255 / 16).round().to(torch.uint8)
    assert torch.equal(torch.cat((splits.train.images, splits.test.images))[:, 0], expected)
    assert torch.equal(torch.cat((splits.train.labels, splits.test.labels)), torch.tensor(raw.target))
    assert int(splits.train.images.max()) == 255


def test_inspection_agrees_with_loading() -> None:
    data = DigitsData(source="digits", validation=Validation(fraction=0.2))
    info, splits = inspect_data(data), load_splits(data)
    assert splits.val is not None
    assert (info.num_train, info.num_val, info.num_test) == (len(splits.train), len(splits.val), len(splits.test))
    assert info.num_classes == splits.num_classes == 10
    assert info.channels == splits.channels == 1
    assert 270 <= info.num_val <= 290


def test_fingerprint_is_that_of_the_data_alone() -> None:
    one = inspect_data(DigitsData(source="digits"))
    other = inspect_data(DigitsData(source="digits", image_size=16, validation="none"))
    assert one.fingerprint == other.fingerprint


def test_other_sizes_are_resized() -> None:
    splits = load_splits(DigitsData(source="digits", image_size=16))
    assert splits.train.images.shape[1:] == (1, 16, 16)
    assert splits.train.images.dtype == torch.uint8
