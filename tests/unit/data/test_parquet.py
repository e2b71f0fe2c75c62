from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from simlap.config.schema import ParquetData, Validation
from simlap.data import inspect_data, load_splits
from simlap.errors import DataError

NAMES = ("cat", "dog", "emu")
LABELS = [0, 1, 2] * 4


def _data(train: Path | str, test: Path | str | None = None, **fields: Any) -> ParquetData:
    """A set of a training and a test part; by default the test part is a copy of the training file."""
    if test is None:
        test = shutil.copy(train, Path(train).with_suffix(".copy"))
    fields = {"validation": Validation(fraction=0.25), "image_size": 8, **fields}
    return ParquetData(source="parquet", train=str(train), test=str(test), **fields)


def _pixels(row: int) -> torch.Tensor:
    pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _png(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_images_labels_and_names_come_back(tmp_path: Path, write: Any) -> None:
    data = _data(
        write(tmp_path / "train.parquet", LABELS, names=NAMES),
        write(tmp_path / "test.parquet", [2, 0], names=NAMES, first_row=50),
        validation="none",
    )
    splits = load_splits(data)
    assert splits.class_names == NAMES
    assert splits.train.labels.tolist() == LABELS
    assert splits.test.labels.tolist() == [2, 0]
    assert splits.channels == inspect_data(data).channels == 3
    for row in range(12):
        assert torch.equal(splits.train.images[row], _pixels(row))
    assert torch.equal(splits.test.images[1], _pixels(51))


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "train" / "b.parquet", LABELS[6:], names=NAMES, first_row=6)
    write(tmp_path / "train" / "a.parquet", LABELS[:6], names=NAMES)
    (tmp_path / "train" / "README.md").write_text("no shard")
    test = write(tmp_path / "test.parquet", [0], names=NAMES)
    splits = load_splits(_data(tmp_path / "train", test, validation="none"))
    assert splits.train.labels.tolist() == LABELS
    assert torch.equal(splits.train.images[7], _pixels(7))
    uri = (tmp_path / "train").as_uri()
    assert inspect_data(_data(uri, test, validation="none")).num_train == 12


def test_the_validation_part_is_held_out(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", LABELS, names=NAMES)
    splits = load_splits(_data(train))
    assert splits.val is not None
    assert sorted(splits.val.labels.tolist()) == [0, 1, 2]
    seen = torch.cat((splits.train.images, splits.val.images)).flatten(1).tolist()
    assert sorted(seen) == sorted(_pixels(row).flatten().tolist() for row in range(12))


def test_numbered_shards_must_all_be_there(tmp_path: Path, write: Any) -> None:
    for number in (0, 2):
        write(tmp_path / "train" / f"train-{number:05d}-of-00003.parquet", LABELS, first_row=number)
    test = write(tmp_path / "test.parquet", [0], first_row=50)
    _expect_failure(_data(tmp_path / "train", test), "data.train", "train-00001-of-00003.parquet is missing")
    write(tmp_path / "train" / "train-00001-of-00003.parquet", LABELS, first_row=20)
    assert inspect_data(_data(tmp_path / "train", test, validation="none")).num_train == 36
    only = tmp_path / "train" / "train-00000-of-00003.parquet"
    assert inspect_data(_data(only, test, validation="none")).num_train == 12, "one file can be asked for"


def test_a_share_reads_the_rows_it_needs(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", [0, 1] * 40)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=7)
    whole = load_splits(_data(path, validation="none"))
    some = load_splits(_data(path, validation=Validation(fraction=0.5), fraction=0.1))
    assert some.val is not None
    assert len(some.train) == len(some.val) == 4
    seen = [image.flatten().tolist() for image in (*some.train.images, *some.val.images)]
    images = whole.train.images.flatten(1).tolist()
    rows = [images.index(image) for image in seen]
    assert whole.train.labels[rows].tolist() == [*some.train.labels, *some.val.labels]


def test_binary_column_other_names_and_small_integers(tmp_path: Path, write: Any) -> None:
    path = write(
        tmp_path / "set.parquet",
        LABELS,
        image_column="photo",
        label_column="kind",
        label_type=pa.uint8(),
        as_struct=False,
    )
    splits = load_splits(_data(path, image_column="photo", label_column="kind", validation="none"))
    assert splits.class_names == ("0", "1", "2")
    assert torch.equal(splits.train.images[3], _pixels(3))


def test_grey_sixteen_bit_and_larger_images(tmp_path: Path, write: Any) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    deep = np.full((8, 8), 0x8000, dtype=np.uint16)
    large = np.full((20, 30, 3), 77, dtype=np.uint8)
    path = write(tmp_path / "set.parquet", [0, 1, 0], images=[_png(grey), _png(deep), _png(large, "JPEG")])
    images = load_splits(_data(path, validation="none")).train.images
    assert torch.equal(images[0], torch.from_numpy(grey).expand(3, 8, 8))
    assert torch.equal(images[1], torch.full((3, 8, 8), 0x80, dtype=torch.uint8))
    assert (images[2].int() - 77).abs().max() <= 2


# --- fingerprint


def test_fingerprint_is_independent_of_the_folder(tmp_path: Path, write: Any) -> None:
    train, test = write(tmp_path / "a" / "train.parquet", LABELS), write(tmp_path / "a" / "test.parquet", [0, 1])
    once = inspect_data(_data(train, test)).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = inspect_data(_data(tmp_path / "b" / "train.parquet", tmp_path / "b" / "test.parquet", image_size=4))
    assert again.fingerprint == once


@pytest.mark.parametrize("change", ["labels", "names", "size", "shards", "test", "file_name"])
def test_fingerprint_changes_with_the_data(tmp_path: Path, write: Any, change: str) -> None:
    test = write(tmp_path / "test.parquet", [0, 1])
    train = write(tmp_path / "one" / "train.parquet", LABELS)
    once = inspect_data(_data(train.parent, test)).fingerprint
    other = tmp_path / "two" / "train.parquet"
    if change == "labels":  # same size, same statistics
        write(other, [1, 0, 2, *LABELS[3:]])
    elif change == "names":
        write(other, LABELS, names=NAMES)
    elif change == "size":
        write(other, [*LABELS, 0])
    elif change == "shards":
        write(other, LABELS)
        write(other.parent / "x.parquet", [0], first_row=12)
    elif change == "test":
        write(other, LABELS)
        write(test, [0, 2])
    else:
        write(other.parent / "renamed.parquet", LABELS)
    assert inspect_data(_data(other.parent, test)).fingerprint != once


def test_inspection_reads_no_image(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS, images=[b"not an image"] * 12)
    assert inspect_data(_data(path)).num_test == 12


# --- errors: each names the place, what is there, and what would do


def _expect_failure(data: ParquetData, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        inspect_data(data)
    for part in parts:
        assert part in str(caught.value)


def test_missing_path(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    _expect_failure(_data(path, tmp_path / "nowhere"), "data.test", str(tmp_path / "nowhere"), "no such file or folder")


def test_unknown_scheme(tmp_path: Path, write: Any) -> None:
    _expect_failure(
        _data("carrier-pigeon://x/y", write(tmp_path / "set.parquet", LABELS)), "data.train", "carrier-pigeon"
    )


def test_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    _expect_failure(_data(tmp_path, tmp_path / "x"), "data.train", "no *.parquet", "notes.txt")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100, b"x" * 100 + b"\xff\xff\xff\x00PAR1"])
def test_not_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(content)
    _expect_failure(_data(path), "data.train", str(path), "not a Parquet file")


def test_damaged_footer(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    raw = bytearray(path.read_bytes())
    raw[-60:-8] = b"\xff" * 52
    path.write_bytes(raw)
    _expect_failure(_data(path), str(path), "Parquet footer")


def test_no_image_column(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS, image_column="picture")
    _expect_failure(_data(path), "neither `image` nor `img`", "data.image_column: ", "picture, label")
    _expect_failure(_data(path, image_column="pictures"), "'pictures'", "did you mean 'picture'", "picture, label")


def test_two_image_columns(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    table = pq.read_table(path)
    pq.write_table(table.append_column("image", table["img"]), path)
    _expect_failure(_data(path), "both `image` and `img`", "data.image_column")
    assert inspect_data(_data(path, image_column="image")).num_test == 12


def test_image_column_of_wrong_type(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    _expect_failure(_data(path, image_column="label"), "'label'", "int64", "struct<bytes: binary")


def test_no_label_column(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    _expect_failure(
        _data(path, label_column="lable"),
        "data.label_column: ",
        "'lable'",
        "Valid: img, label.",
        "did you mean 'label'",
    )


def test_labels_of_wrong_type(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", [0.5] * 3, label_type=pa.float32())
    _expect_failure(_data(path), "data.label_column: ", "'label'", "float", "must be integers")


@pytest.mark.parametrize(("bad", "shown"), [(-1, "label -1"), (None, "label None"), (1 << 40, f"label {1 << 40}")])
def test_labels_out_of_range(tmp_path: Path, write: Any, bad: int | None, shown: str) -> None:
    path = write(tmp_path / "set.parquet", [0, 1, bad, 0])
    _expect_failure(_data(path), str(path), "row 2", shown)


def test_labels_beyond_the_names(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", [0, 1, 2, 3], names=NAMES)
    _expect_failure(_data(path), "label 3", "3 classes")


def test_test_classes_beyond_the_training_set(tmp_path: Path, write: Any) -> None:
    train, test = write(tmp_path / "train.parquet", LABELS), write(tmp_path / "test.parquet", [0, 5])
    _expect_failure(_data(train, test), "data.test", str(test), "label 5", "3 classes in the training part")


def test_class_names_that_differ(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", LABELS, names=NAMES)
    test = write(tmp_path / "test.parquet", [0], names=("cat", "emu", "dog"))
    _expect_failure(_data(train, test), "data.test: class names", "'dog' and 'emu'")


def test_the_test_set_holds_no_training_file(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "train" / "a.parquet", LABELS)
    link = tmp_path / "link.parquet"
    link.symlink_to(path)
    for train, test in ((path, path), (path.parent, path), (path, link), (path, path.as_uri())):
        _expect_failure(_data(train, test), "data.test: ", str(path), "also among the training files")


def test_class_without_training_images(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", [0, 2] * 6, names=NAMES)
    _expect_failure(_data(train), "data.train: ", str(train), "no training image of class 'dog' (label 1)")


def test_class_emptied_by_the_split(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", [*LABELS, 3])
    _expect_failure(_data(path, validation=Validation(fraction=0.5)), "data.validation.fraction: ", "class '3'", "0.5")


def test_split_without_validation_images(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.parquet", LABELS)
    _expect_failure(_data(path, validation=Validation(fraction=0.01)), "data.validation.fraction: ", "no image", "0.01")


def test_single_class_and_no_rows(tmp_path: Path, write: Any) -> None:
    one = write(tmp_path / "one.parquet", [0, 0, 0])
    _expect_failure(_data(one), "a single class")
    none = write(tmp_path / "none.parquet", [])
    _expect_failure(_data(none), "no rows")


@pytest.mark.parametrize("bad", [b"\xff\xd8\xff\xe0 broken", b"", None])
def test_corrupt_image_is_named(tmp_path: Path, write: Any, bad: bytes | None) -> None:
    images = [_png(np.zeros((8, 8, 3), dtype=np.uint8))] * 5
    path = write(tmp_path / "set.parquet", [0, 1, 0, 1, 0], images=[*images[:3], bad, images[4]])
    with pytest.raises(DataError, match=re.escape(f"{path}, row 3 (images/3.png)")):
        load_splits(_data(path, validation="none"))
