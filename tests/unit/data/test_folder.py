from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simlap.config.schema import FolderData
from simlap.data import inspect_data, load_splits
from simlap.errors import DataError


def _picture(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _save(path: Path, k: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_picture(k)).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Classes ant (images 0, 1, 2) and bee (3, 4); one test image each (5, 6)."""
    for path, k in {
        "train/ant/a.png": 0,
        "train/ant/deep/er/b.JPEG": 1,
        "train/ant/z.PNG": 2,
        "train/bee/a.png": 3,
        "train/bee/b.webp": 4,
        "test/ant/a.png": 5,
        "test/bee/c.png": 6,
    }.items():
        _save(tmp_path / path, k)
    (tmp_path / "train/ant/.hidden.png").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/bee/notes.txt").write_text("no image")
    (tmp_path / "train/README.md").write_text("no class")
    return tmp_path


def _data(root: Path, **fields: Any) -> FolderData:
    given = {"train": str(root / "train"), "test": str(root / "test"), "image_size": 8, "validation": "none", **fields}
    return FolderData.model_validate({"source": "folder", **given})


def test_images_are_sorted_by_path_and_classes_by_name(root: Path) -> None:
    splits = load_splits(_data(root))
    assert splits.class_names == ("ant", "bee")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.test.labels.tolist() == [0, 1]
    for row in range(5):
        assert torch.equal(splits.train.images[row], torch.from_numpy(_picture(row)).permute(2, 0, 1))
    info = inspect_data(_data(root))
    assert (info.num_train, info.num_test, info.class_sizes, info.channels) == (5, 2, (3, 2), 3)


def test_links_and_uris_lead_to_images(root: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    (links / "train").mkdir(parents=True)
    for name in ("ant", "bee"):
        (links / "train" / name).symlink_to(root / "train" / name)
    uri = _data(root, train=(links / "train").as_uri())
    assert torch.equal(load_splits(uri).train.images, load_splits(_data(root)).train.images)


def test_fingerprint_changes_with_the_data_not_with_the_folder(root: Path, tmp_path: Path) -> None:
    once = inspect_data(_data(root)).fingerprint
    other = tmp_path / "other"
    for part in ("train", "test"):
        shutil.copytree(root / part, other / part)
    assert inspect_data(_data(other, image_size=4)).fingerprint == once
    image = other / "train" / "bee" / "a.png"
    image.rename(image.with_name("aa.png"))
    renamed = inspect_data(_data(other)).fingerprint
    with image.with_name("aa.png").open("ab") as file:
        file.write(b"more")
    longer = inspect_data(_data(other)).fingerprint
    assert len({once, renamed, longer}) == 3


def test_inspection_reads_no_image(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"not an image")
    assert inspect_data(_data(root)).num_train == 5


# --- errors


def assert_refused(data: FolderData, key: str, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        inspect_data(data)
    assert caught.value.key == key
    for part in parts:
        assert part in str(caught.value)


def test_missing_folder_and_file_instead_of_folder(root: Path) -> None:
    assert_refused(_data(root, test=str(root / "none")), "data.test", "no such folder", str(root / "none"))
    assert_refused(_data(root, train=str(root / "train/README.md")), "data.train", "a file, not a folder")


def test_no_class_folders(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("x")
    assert_refused(_data(root, train=str(root / "empty")), "data.train", "no class folder", str(root / "empty"))


def test_images_outside_the_class_folders(root: Path) -> None:
    _save(root / "train" / "lost.png", 0)
    assert_refused(_data(root), "data.train", "outside the class folders", "lost.png")


def test_empty_class(root: Path) -> None:
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "movie.mp4").write_text("x")
    assert_refused(_data(root), "data.train", str(root / "train" / "cat"), "movie.mp4", ".jpeg")


def test_classes_that_differ(root: Path) -> None:
    shutil.rmtree(root / "test" / "bee")
    _save(root / "test" / "wasp" / "a.png", 0)
    assert_refused(_data(root), "data.test", "lacks 'bee' and also has 'wasp'")


def test_overlapping_folders(root: Path) -> None:
    (root / "link").symlink_to(root / "train")
    for test in ("train", "train/ant", "link", "."):
        assert_refused(_data(root, test=str(root / test)), "data.test", "overlap")


def test_an_image_that_cannot_be_decoded_is_named(root: Path) -> None:
    path = root / "train" / "bee" / "b.webp"
    path.write_bytes(b"RIFF broken")
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        load_splits(_data(root))
    assert caught.value.key == "data.train"
