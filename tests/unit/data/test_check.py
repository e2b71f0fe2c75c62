from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simlap.config.schema import DigitsData, FolderData, ParquetData
from simlap.data import check_dataset, inspect_data, load_splits
from simlap.data.decode import decode_image
from simlap.errors import DataError
from tests.unit.data.conftest import encode


def test_the_report_agrees_with_loading() -> None:
    data = DigitsData(source="digits", classes=(3, 1, 4), fraction=0.5, stored_size=16)
    report, info, splits = check_dataset(data), inspect_data(data), load_splits(data)
    assert splits.val is not None
    assert (report.mean, report.std) == (splits.mean, splits.std)
    assert report.class_names == ("3", "1", "4")
    for part, images in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        assert report.counts[part] == tuple(images.labels.bincount().tolist())  # type: ignore[index]
    assert report.sizes == {
        "train": ((8, 8, info.num_train + info.num_val),),
        "test": ((8, 8, info.num_test),),
    }
    assert (report.channels, report.fingerprint, report.faults) == (1, info.fingerprint, ())


def _folder(root: Path) -> FolderData:
    for part, count in (("train", 40), ("test", 3)):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((4 + i % 2, 6, 3), i, dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:02d}.png")
    return FolderData(source="folder", train=str(root / "train"), test=str(root / "test"), image_size=4)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    report = check_dataset(_folder(tmp_path))
    assert sorted(report.sizes["train"]) == [(6, 4, 40), (6, 5, 40)]
    assert report.sizes["test"] == ((6, 4, 4), (6, 5, 2))


def test_all_images_that_cannot_be_decoded_are_listed(tmp_path: Path) -> None:
    data = _folder(tmp_path)
    broken = [tmp_path / "train/ant/03.png", tmp_path / "train/bee/39.png", tmp_path / "test/ant/01.png"]
    for path in broken:
        path.write_bytes(b"broken")
    report = check_dataset(data)
    assert len(report.faults) == 3
    for path in broken:
        assert any(fault.startswith(f"{path}: ") for fault in report.faults)
    assert sum(map(sum, report.counts.values())) == 86
    assert sum(count for _, _, count in (*report.sizes["train"], *report.sizes["test"])) == 83
    assert report.mean is not None


def test_rows_of_parquet_files_are_listed(tmp_path: Path, write: Any) -> None:
    good = encode(np.zeros((8, 8, 3), dtype=np.uint8))
    train = write(tmp_path / "train.parquet", [0, 1, 0, 1], images=[good, b"x", good, None])
    test = write(tmp_path / "test.parquet", [0, 1], images=[b"y", good])
    data = ParquetData(source="parquet", train=str(train), test=str(test), image_size=8, validation="none")
    places = [fault.split(":")[0] for fault in check_dataset(data).faults]
    assert places == [
        f"{train}, row 1 (images/1.png)",
        f"{train}, row 3 (images/3.png)",
        f"{test}, row 0 (images/0.png)",
    ]


def test_a_set_of_broken_images_has_no_statistics(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", [0, 1], images=[b"x", b"x"])
    test = write(tmp_path / "test.parquet", [0, 1])
    report = check_dataset(ParquetData(source="parquet", train=str(train), test=str(test), validation="none"))
    assert (report.mean, report.std, report.sizes["train"]) == (None, None, ())
    assert len(report.faults) == 2


def test_what_keeps_a_dataset_from_being_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        check_dataset(FolderData(source="folder", train=str(tmp_path / "none"), test=str(tmp_path)))


def test_every_image_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def count(stored: Any, channels: int) -> torch.Tensor:
        seen.append(stored.place)
        return decode_image(stored, channels)

    monkeypatch.setattr("simlap.data.check.decode_image", count)
    check_dataset(DigitsData(source="digits"))
    assert len(seen) == len(set(seen)) == 1797
