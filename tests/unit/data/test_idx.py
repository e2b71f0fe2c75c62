from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from simlap.config.schema import TorchvisionData
from simlap.data import inspect_data
from simlap.data.idx import read_idx
from simlap.errors import DataError
from tests.unit.data.torchvision_layouts import fashion_mnist, write_idx


@pytest.mark.parametrize("name", ["x-ubyte", "x-ubyte.gz"])
def test_an_array_comes_back(tmp_path: Path, name: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / name, array)
    assert torch.equal(read_idx(tmp_path / name, 3, key="data.root"), torch.from_numpy(array))


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file

    fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    assert torch.equal(read_idx(path, 3, key="data.root"), read_image_file(str(path)))


def _error(path: Path, dimensions: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions, key="data.root")
    assert caught.value.key == "data.root"
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_wrong_magic_number(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_idx(path, np.zeros(5, dtype=np.uint8))
    assert "begins with 00000801, not 00000803" in _error(path)
    path.write_bytes(b"")
    assert "begins with nothing" in _error(path)


@pytest.mark.parametrize("missing", [1, 24, 30])
def test_cut_off(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "x"
    write_idx(path, np.zeros((2, 3, 4), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-missing])
    assert "was cut off" in _error(path)


def test_too_long(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_idx(path, np.zeros((2, 3, 4), dtype=np.uint8))
    path.write_bytes(path.read_bytes() + b"x")
    assert "is too long: its header says 2 x 3 x 4 bytes, more are there" in _error(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "plain"])
def test_damaged_compression(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.gz"
    write_idx(path, np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-6] ^= 0xFF
    path.write_bytes({"cut": bytes(content[:-200]), "flip": bytes(content), "plain": b"not compressed"}[damage])
    assert "cannot read" in _error(path)


def _set_error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        inspect_data(TorchvisionData(source="fashion_mnist", root=str(root)))
    return str(caught.value)


def test_labels_and_images_must_agree(tmp_path: Path) -> None:
    fashion_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(9, dtype=np.uint8))
    assert "10 images" in _set_error(tmp_path)
    assert "9 labels" in _set_error(tmp_path)


def test_a_label_beyond_the_classes(tmp_path: Path) -> None:
    fashion_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0] * 19 + [10], dtype=np.uint8))
    assert "item 19: label 10; there are 10 classes" in _set_error(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    fashion_mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((0, 28, 28), dtype=np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(0, dtype=np.uint8))
    assert "has no images" in _set_error(tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """64 MiB of zeros behind a header of 24 bytes: 64 KiB of them are unpacked at most."""
    path = tmp_path / "x.gz"
    write_idx(path, np.zeros((2, 3, 4), dtype=np.uint8))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(64 << 20)))
    tracemalloc.start()
    try:
        assert "is too long: its header says 2 x 3 x 4 bytes, more are there" in _error(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_an_array_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    assert "is too large: its header says 4294967295 x 4294967295 x 4294967295 bytes, at most 4294967296" in _error(
        path
    )
