from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from simlap.config.schema import Data, DigitsData, FolderData, ParquetData, TorchvisionData
from simlap.data import convert, inspect_data, load_splits
from simlap.errors import DataError
from simlap.storage import Storage
from tests.unit.data.conftest import encode
from tests.unit.data.torchvision_layouts import LAYOUTS


def _read(target: str | Path, data: Data) -> ParquetData:
    return ParquetData(
        source="parquet",
        train=f"{target}/train",
        test=f"{target}/test",
        image_size=data.image_size,
        stored_size=data.stored_size,
        validation=data.validation,
    )


def _assert_same(data: Data, other: Data, *, hierarchy: bool = True) -> None:
    one, two = load_splits(data), load_splits(other)
    assert one.class_names == two.class_names
    assert (one.mean, one.std) == (two.mean, two.std)
    assert one.hierarchy == two.hierarchy or not hierarchy
    for part in ("train", "val", "test"):
        mine, theirs = getattr(one, part), getattr(two, part)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.equal(mine.labels, theirs.labels)
            assert torch.equal(mine.images, theirs.images)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    data = DigitsData(source="digits", stored_size=10)
    made = convert(data, str(tmp_path / "out"), rows_per_shard=600)
    assert made.num_images == {"train": 1400, "test": 397}
    assert made.files == (
        *(f"train/train-{i:05d}-of-00003.parquet" for i in range(3)),
        "test/test-00000-of-00001.parquet",
    )
    assert made.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.parquet"))
    _assert_same(data, _read(tmp_path / "out", data))


def test_shuffled_shards_hold_the_same_images_in_another_order(tmp_path: Path) -> None:
    data = DigitsData(source="digits", fraction=0.2, validation="none")
    made = convert(data, str(tmp_path / "once"), rows_per_shard=100, shuffle=True)
    once = _read(tmp_path / "once", data)
    convert(once.model_copy(update={"fraction": 1.0}), str(tmp_path / "twice"), rows_per_shard=90, shuffle=True)
    convert(data, str(tmp_path / "again"), rows_per_shard=100, shuffle=True)
    assert sum(made.num_images.values()) == 677
    first = load_splits(data).train
    pixels = [image.flatten().tolist() for image in first.images]
    orders = []
    for name in ("once", "twice", "again"):
        other = load_splits(_read(tmp_path / name, data)).train
        order = [pixels.index(image.flatten().tolist()) for image in other.images]
        assert sorted(order) == list(range(len(pixels)))
        assert torch.equal(other.labels, first.labels[order])
        orders.append(order)
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("source", ["cifar10", "fashion_mnist", "oxford_pets"])
def test_torchvision_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    LAYOUTS[source](tmp_path / "data", monkeypatch)
    data = TorchvisionData.model_validate(
        {"source": source, "root": str(tmp_path / "data"), "validation": {"fraction": 0.5}, "image_size": 16}
    )
    convert(data, str(tmp_path / "out"), rows_per_shard=7)
    back = _read(tmp_path / "out", data)
    assert inspect_data(back).channels == inspect_data(data).channels
    _assert_same(data, back, hierarchy=source != "oxford_pets")  # its species are in torchvision's files only


def _folder(root: Path) -> FolderData:
    for part in ("train", "test"):
        for i, name in enumerate(("ant", "bee")):
            (root / part / name / "deep").mkdir(parents=True)
            for kind in ("JPEG", "PNG"):
                pixels = np.random.default_rng(i).integers(0, 256, (8, 12, 3), dtype=np.uint8)
                (root / part / name / "deep" / f"{i}.{kind.lower()}").write_bytes(encode(pixels, kind))
    return FolderData(
        source="folder", train=str(root / "train"), test=str(root / "test"), image_size=8, validation="none"
    )


def test_files_keep_their_bytes_and_names(tmp_path: Path) -> None:
    data = _folder(tmp_path)
    convert(data, str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "train" / "train-00000-of-00001.parquet")
    assert table.column_names == ["image", "label"]
    assert table["label"].to_pylist() == [0, 0, 1, 1]
    for value, name in zip(
        table["image"].to_pylist(),
        ["ant/deep/0.jpeg", "ant/deep/0.png", "bee/deep/1.jpeg", "bee/deep/1.png"],
        strict=True,
    ):
        assert value == {"bytes": (tmp_path / "train" / name).read_bytes(), "path": name}
    _assert_same(data, _read(tmp_path / "out", data))


def test_classes_and_fraction_are_applied(tmp_path: Path) -> None:
    data = DigitsData(source="digits", classes=(8, 2), fraction=0.3, validation="none")
    convert(data, str(tmp_path / "out"))
    _assert_same(data, _read(tmp_path / "out", data))


def test_a_target_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for target, part in (("out", "thesis.tex"), ("out/thesis.tex", "cannot be used as a folder")):
        with pytest.raises(DataError, match=re.escape(part)) as caught:
            convert(DigitsData(source="digits"), str(tmp_path / target))
        assert caught.value.key == "target"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="at least 1"):
        convert(DigitsData(source="digits"), str(tmp_path / "new"), rows_per_shard=0)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    data = _folder(tmp_path)
    path = tmp_path / "train" / "bee" / "deep" / "1.png"
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        convert(data, str(tmp_path / "out"))
    assert caught.value.key == "data.train"


def test_a_conversion_broken_off_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DigitsData(source="digits", validation="none")
    write, written = Storage.write, 0

    def stop(self: Storage, path: str, content: bytes) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError("disk full")
        write(self, path, content)

    monkeypatch.setattr(Storage, "write", stop)
    with pytest.raises(DataError, match="disk full"):
        convert(data, str(tmp_path / "out"), rows_per_shard=400)
    convert(data, str(tmp_path / "whole"), rows_per_shard=400)
    broken = _read(tmp_path / "out", data).model_copy(update={"test": str(tmp_path / "whole" / "test")})
    with pytest.raises(DataError, match=r"the shard train-00002-of-00004\.parquet is missing") as caught:
        inspect_data(broken)
    assert caught.value.key == "data.train"


def test_shards_written_in_row_groups_are_read_by_row(tmp_path: Path) -> None:
    """A share of large shards, images of several row groups and none of others."""
    data = DigitsData(source="digits", validation="none")
    convert(data, str(tmp_path / "out"), rows_per_shard=700)
    file = pq.ParquetFile(tmp_path / "out" / "train" / "train-00000-of-00002.parquet")
    assert file.num_row_groups == 3
    few = {"fraction": 0.01, "classes": (5, 9)}
    _assert_same(data.model_copy(update=few), _read(tmp_path / "out", data).model_copy(update=few))


def test_grey_sets_stay_grey_only_where_both_parts_say_so(tmp_path: Path, write: Any) -> None:
    data = DigitsData(source="digits", validation="none")
    convert(data, str(tmp_path / "out"))
    other = write(tmp_path / "test.parquet", [0, 1], names=[str(i) for i in range(10)])
    mixed = _read(tmp_path / "out", data).model_copy(update={"test": str(other)})
    assert inspect_data(_read(tmp_path / "out", data)).channels == 1
    assert inspect_data(mixed).channels == 3
    assert load_splits(mixed).train.images.shape[1] == 3
