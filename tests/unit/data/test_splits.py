from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config.schema import DigitsData, ParquetData
from simlap.data import inspect_data, load_splits
from simlap.data.channels import channel_statistics, with_channels
from simlap.data.known_hierarchies import CIFAR10
from simlap.errors import DataError
from tests.unit.data.torchvision_layouts import CIFAR10_NAMES


def _parquet(tmp_path: Path, write: Any, names: list[str], **fields: Any) -> ParquetData:
    labels = [*range(len(names))] * 2
    return ParquetData(
        source="parquet",
        train=str(write(tmp_path / "train.parquet", labels, names=names)),
        test=str(write(tmp_path / "test.parquet", labels, names=names, first_row=50)),
        image_size=8,
        validation="none",
        **fields,
    )


def test_sizes_of_the_stored_images() -> None:
    splits = load_splits(DigitsData(source="digits", image_size=8, stored_size=16, eval_size=9))
    assert splits.train.images.shape[1:] == splits.test.images.shape[1:] == (1, 16, 16)
    assert (splits.image_size, splits.eval_size) == (8, 9)
    plain = load_splits(DigitsData(source="digits", image_size=10))
    assert (plain.train.images.shape[-1], plain.image_size, plain.eval_size) == (10, 10, 10)


def test_given_statistics_are_used() -> None:
    splits = load_splits(DigitsData(source="digits", mean=(0.25,), std=(0.5,)))
    assert (splits.mean, splits.std) == ((0.25,), (0.5,))


@pytest.mark.parametrize("call", [inspect_data, load_splits])
def test_statistics_for_other_channels_are_refused(call: Any) -> None:
    with pytest.raises(DataError) as caught:
        call(DigitsData(source="digits", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)))
    assert caught.value.key == "data.mean"
    assert "have 1" in str(caught.value)
    assert "[0.5, 0.5, 0.5]" in str(caught.value)


def test_transfer_converts_channels_and_keeps_statistics() -> None:
    data = DigitsData(source="digits", mean=(0.1,), std=(0.2,))
    plain = load_splits(data)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    splits = load_splits(data, channels=3, mean=mean, std=std)
    assert splits.channels == 3
    assert (splits.mean, splits.std) == (mean, std)
    assert splits.val is not None
    assert torch.equal(splits.train.images, plain.train.images.expand(-1, 3, -1, -1))
    own = load_splits(data, channels=3)
    assert (own.mean, own.std) == channel_statistics(own.train.images)
    with pytest.raises(ValueError, match="one per channel"):
        load_splits(data, mean=mean, std=std)
    with pytest.raises(ValueError, match="together"):
        load_splits(data, mean=(0.1,))


def test_transfer_of_colours_to_a_grey_backbone(tmp_path: Path, write: Any) -> None:
    data = _parquet(tmp_path, write, ["a", "b"])
    plain, grey = load_splits(data), load_splits(data, channels=1, mean=(0.5,), std=(0.25,))
    assert grey.channels == 1
    assert torch.equal(grey.test.images, with_channels(plain.test.images, 1))


def test_known_class_names_bring_their_hierarchy(tmp_path: Path, write: Any) -> None:
    assert inspect_data(_parquet(tmp_path, write, CIFAR10_NAMES)).hierarchy == CIFAR10
    few = inspect_data(_parquet(tmp_path, write, CIFAR10_NAMES, classes=("cat", "ship", "dog")))
    assert few.hierarchy == {"vehicle": {"air and water": ["ship"]}, "animal": {"pet": ["cat", "dog"]}}
    assert inspect_data(_parquet(tmp_path, write, CIFAR10_NAMES[1:])).hierarchy is None


def test_a_given_fingerprint_pins_the_data(tmp_path: Path, write: Any) -> None:
    data = _parquet(tmp_path, write, CIFAR10_NAMES)
    found = inspect_data(data).fingerprint
    pinned = data.model_copy(update={"fingerprint": found})
    assert inspect_data(pinned).fingerprint == found
    assert load_splits(pinned).num_classes == 10
    write(tmp_path / "train.parquet", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 4, names=CIFAR10_NAMES, first_row=7)
    changed = inspect_data(data).fingerprint
    assert changed != found
    for use in (inspect_data, load_splits):
        with pytest.raises(DataError) as caught:
            use(pinned)
        assert (caught.value.key, caught.value.value) == ("data.fingerprint", found)
        assert changed in str(caught.value)


def test_a_selection_without_test_images_is_refused(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", [0, 1, 2] * 4)
    test = write(tmp_path / "test.parquet", [2, 2], first_row=50)
    data = ParquetData(source="parquet", train=str(train), test=str(test), classes=(0, 1), validation="none")
    with pytest.raises(DataError, match="no test image of 0, 1") as caught:
        inspect_data(data)
    assert caught.value.key == "data.test"


def test_parts_share_one_tensor() -> None:
    """The training images are not copied to split them."""
    splits = load_splits(DigitsData(source="digits"))
    assert splits.val is not None
    assert splits.train.images.untyped_storage().data_ptr() == splits.val.images.untyped_storage().data_ptr()
