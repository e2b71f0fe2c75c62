"""Tiny copies of what torchvision's datasets look like on disk. Image k of a dataset is `picture(k)`."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def picture(k: int, height: int = 32, width: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_picture(path: Path, k: int, height: int = 40, width: int = 50) -> None:
    """As PNG whatever the name says: lossless, and decoders go by the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(k, height, width)).save(path, "PNG")


def _cifar(folder: Path, files: list[tuple[str, list[int], int]], key: str) -> None:
    folder.mkdir(parents=True)
    for name, labels, first in files:
        data = np.stack([picture(first + i).transpose(2, 0, 1).reshape(-1) for i in range(len(labels))])
        (folder / name).write_bytes(pickle.dumps({"data": data, key: labels}))


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 training images (classes 0 to 9 twice), 10 test images. torchvision's checksums are those of the real files."""
    folder = root / "cifar-10-batches-py"
    _cifar(folder, [("data_batch_1", [*range(10)], 0), ("data_batch_2", [*range(10)], 10)], "labels")
    (folder / "test_batch").write_bytes(
        pickle.dumps(
            {"data": np.stack([picture(20 + i).transpose(2, 0, 1).ravel() for i in range(10)]), "labels": [*range(10)]}
        )
    )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_NAMES}))
    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [["data_batch_1", None], ["data_batch_2", None]])
    monkeypatch.setattr(known, "test_list", [["test_batch", None]])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": None})


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 training and 100 test images, under the real class names. Checksums as in `cifar10`."""
    from simlap.data.known_hierarchies import CIFAR100

    names = sorted(name for group in CIFAR100.values() for name in group)
    folder = root / "cifar-100-python"
    _cifar(folder, [("train", [*range(100)] * 2, 0), ("test", [*range(100)], 200)], "fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    known = torchvision.datasets.CIFAR100
    monkeypatch.setattr(known, "train_list", [["train", None]])
    monkeypatch.setattr(known, "test_list", [["test", None]])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": None})


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 + 10 images; the digit 0 has the label 10 there. Checksums as in `cifar10`."""
    root.mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 0, 20), ("test", 20, 10)):
        pixels = np.stack([picture(first + i) for i in range(count)], axis=3)
        labels = np.array([i % 10 or 10 for i in range(count)], dtype=np.uint8)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})
    plain = {name: [*entry[:2], None] for name, entry in torchvision.datasets.SVHN.split_list.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", plain)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 + 10 images, columns first on disk, labels from 1. Checksums as in `cifar10`."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, first, count in (("train", 0, 20), ("test", 20, 10)):
        pixels = np.stack([picture(first + i, 96, 96).transpose(2, 1, 0) for i in range(count)])
        (folder / f"{part}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    known = torchvision.datasets.STL10
    monkeypatch.setattr(known, "train_list", [["train_X.bin", None], ["train_y.bin", None]])
    monkeypatch.setattr(known, "test_list", [["test_X.bin", None], ["test_y.bin", None]])


def write_idx(path: Path, array: np.ndarray) -> None:
    """Compressed where the name says so."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def fashion_mnist(folder: Path, suffix: str = "") -> None:
    """20 + 10 grey images of 28 x 28 pixels, in the folder itself."""
    for part, first, count in (("train", 0, 20), ("t10k", 20, 10)):
        pixels = np.stack([picture(first + i, 28, 28)[..., 0] for i in range(count)])
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """102 training, 102 validation and 102 test images, scattered over the numbers. Checksums as in `cifar10`."""
    folder = root / "flowers-102"
    for number in range(1, 307):
        save_picture(folder / "jpg" / f"image_{number:05d}.jpg", number, 6, 8)
    savemat(folder / "imagelabels.mat", {"labels": np.array([(n - 1) % 102 + 1 for n in range(1, 307)])})
    ids = {"tstid": range(1, 103), "trnid": range(103, 205), "valid": range(205, 307)}
    savemat(folder / "setid.mat", {name: np.array(numbers) for name, numbers in ids.items()})
    known = torchvision.datasets.Flowers102
    monkeypatch.setattr(known, "_file_dict", {name: (file, None) for name, (file, _) in known._file_dict.items()})


def oxford_pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two breeds of cats and one of dogs, two images each for training and one for testing."""
    folder = root / "oxford-iiit-pet"
    breeds = [("Abyssinian", 1, 1), ("beagle", 2, 2), ("Bengal_tiger", 3, 1)]
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = []
        for breed, label, species in breeds:
            for number in numbers:
                save_picture(folder / "images" / f"{breed}_{number}.jpg", 10 * label + number)
                lines.append(f"{breed}_{number} {label} {species} 1")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines))


def stanford_cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, two images each for training and one for testing."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    models = np.empty(2, dtype=object)
    models[:] = ["Audi S4 Sedan 2012", "BMW M3 Coupe 2012"]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": models})
    for part, numbers, file in (
        ("train", range(4), folder / "devkit" / "cars_train_annos.mat"),
        ("test", range(4, 6), folder / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.empty(len(numbers), dtype=[("class", object), ("fname", object)])
        for i, number in enumerate(numbers):
            rows[i] = (number % 2 + 1, f"{number:05d}.jpg")
            save_picture(folder / f"cars_{part}" / f"{number:05d}.jpg", number)
        savemat(file, {"annotations": rows})


def fgvc_aircraft(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three variants: two of one family, another of another manufacturer. Two training images, one test image each."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    variants = [("737-200", "Boeing 737", "Boeing"), ("737-300", "Boeing 737", "Boeing"), ("A320", "A320", "Airbus")]
    folder.mkdir(parents=True)
    levels = (("variant", "variants"), ("family", "families"), ("manufacturer", "manufacturers"))
    for column, (level, plural) in enumerate(levels):
        (folder / f"{plural}.txt").write_text("\n".join(sorted({row[column] for row in variants})))
        for part, first in (("trainval", (0, 3)), ("test", (6,))):
            lines = [f"{at + i:07d} {row[column]}" for at in first for i, row in enumerate(variants)]
            (folder / f"images_{level}_{part}.txt").write_text("\n".join(lines))
    for number in range(9):
        save_picture(folder / "images" / f"{number:07d}.jpg", number)


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dishes, two images each for training and one for testing."""
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        paths = {dish: [f"{dish}/{number}" for number in numbers] for dish in ("apple_pie", "waffles")}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(paths))
        for i, dish in enumerate(paths):
            for number in numbers:
                save_picture(folder / "images" / dish / f"{number}.jpg", 10 * i + number)


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two textures, one image each in each of the three parts."""
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for i, texture in enumerate(("banded", "dotted")):
            lines.append(f"{texture}/{texture}_{number}.jpg")
            save_picture(folder / "images" / lines[-1], 10 * i + number)
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines))


def _fashion_raw(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion_mnist(root / "FashionMNIST" / "raw")


LAYOUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": _fashion_raw,
    "svhn": svhn,
    "stl10": stl10,
    "flowers102": flowers102,
    "oxford_pets": oxford_pets,
    "stanford_cars": stanford_cars,
    "fgvc_aircraft": fgvc_aircraft,
    "food101": food101,
    "dtd": dtd,
}
