"""The datasets that torchvision knows: it finds (or downloads) and reads their files, we take arrays, paths and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simlap.config.schema import TorchvisionData
from simlap.data.arrays import ArraySource
from simlap.data.files import FileSource, ImageFile
from simlap.data.hierarchy import Hierarchy
from simlap.data.idx import find_idx, read_idx_set
from simlap.data.source import PARTS, ImageSet, Part, Source
from simlap.errors import DataError

_KEY = "data.root"


@dataclass(frozen=True)
class _Known:
    """How torchvision's class is called for each part."""

    class_name: str
    place: str
    """File or folder below the root that must be there."""
    train: Sequence[Mapping[str, object]] = ({"split": "train"},)
    """Arguments for the training part; several are joined."""
    test: Mapping[str, object] = field(default_factory=lambda: {"split": "test"})


_ARRAYS = {
    "cifar10": _Known("CIFAR10", "cifar-10-batches-py", ({"train": True},), {"train": False}),
    "cifar100": _Known("CIFAR100", "cifar-100-python", ({"train": True},), {"train": False}),
    "svhn": _Known("SVHN", "train_32x32.mat and test_32x32.mat"),
    "stl10": _Known("STL10", "stl10_binary"),
}
_FILES = {
    "flowers102": _Known("Flowers102", "flowers-102", ({"split": "train"}, {"split": "val"})),
    "oxford_pets": _Known("OxfordIIITPet", "oxford-iiit-pet", ({"split": "trainval"},)),
    "stanford_cars": _Known("StanfordCars", "stanford_cars"),
    "fgvc_aircraft": _Known("FGVCAircraft", "fgvc-aircraft-2013b", ({"split": "trainval"},)),
    "food101": _Known("Food101", "food-101"),
    "dtd": _Known("DTD", "dtd", ({"split": "train"}, {"split": "val"})),
}
_FASHION = _Known("FashionMNIST", "FashionMNIST/raw", ({"train": True},), {"train": False})
_BY_HAND = {
    "stanford_cars": "torchvision cannot download it, its address is gone. Put devkit/ (with cars_meta.mat and "
    "cars_train_annos.mat), cars_train/, cars_test/ and cars_test_annos_withlabels.mat there",
}
_STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def open_torchvision(data: TorchvisionData) -> Source:
    """Open a dataset, after downloading it where it is missing and `data.download` says so. Raises DataError."""
    if data.source == "fashion_mnist":
        return _fashion(data)
    if data.source in _ARRAYS:
        source = _array_source(data, _ARRAYS[data.source])
    else:
        source = _file_source(data, _FILES[data.source])
    for part in PARTS:
        labels, count = source.labels(part), len(source.class_names)
        wrong = labels[(labels < 0) | (labels >= count)].tolist()
        if wrong:
            raise DataError(
                f"{source.where(part)} is damaged: it has label {wrong[0]}, and {count} classes (labels 0 to {count - 1})",
                key=_KEY,
            )
    return source


def _opened(data: TorchvisionData, known: _Known) -> dict[Part, list[Any]]:
    """torchvision's datasets of each part."""
    return {
        "train": [_open(data, known, arguments) for arguments in known.train],
        "test": [_open(data, known, known.test)],
    }


def _open(data: TorchvisionData, known: _Known, arguments: Mapping[str, object]) -> Any:
    from torchvision import datasets  # seconds of import time, paid only by those who use it

    root = Path(data.root).expanduser()
    download = data.download and data.source not in _BY_HAND
    try:
        return getattr(datasets, known.class_name)(root, download=download, **arguments)
    except Exception as error:  # its readers (pickle, scipy, json ...) have no error in common for damaged files
        raise DataError(_what_to_do(data, known, root, error), key=_KEY, value=data.root) from error


def _what_to_do(data: TorchvisionData, known: _Known, root: Path, error: Exception) -> str:
    if data.source in _BY_HAND:
        remedy = f"{_BY_HAND[data.source]} ({root / known.place})"
    elif data.download:
        remedy = "downloading did not help"
    else:
        remedy = f"set data.download: true, or put {known.place} there"
    return f"{data.source} is not in {root}, or it is damaged; {remedy}. torchvision says: {str(error) or type(error).__name__}"


def _fashion(data: TorchvisionData) -> Source:
    """From the IDX files, wherever they come from: torchvision's own reader takes no compressed ones."""
    from torchvision.datasets import FashionMNIST

    root = Path(data.root).expanduser()
    folders = [root, root / _FASHION.place]
    folder = find_idx(folders)
    if folder is None and data.download:
        for arguments in (*_FASHION.train, _FASHION.test):
            _open(data, _FASHION, arguments)
        folder = find_idx(folders)
    if folder is None:
        raise DataError(
            f"the four IDX files of fashion_mnist (train-images-idx3-ubyte and so on, plain or .gz) are neither in {root} nor "
            f"in {root / _FASHION.place}; set data.download: true, or name the folder that has them, such as Debian's "
            "/usr/share/datasets/fashion-mnist (package dataset-fashion-mnist)",
            key=_KEY,
            value=data.root,
        )
    names = FashionMNIST.classes
    parts = read_idx_set(folder, len(names), key=_KEY)
    return ArraySource("fashion_mnist", parts, names, where=lambda part: f"{folder} ({part})", key=_KEY)


def _array_source(data: TorchvisionData, known: _Known) -> Source:
    opened = _opened(data, known)
    return ArraySource(
        data.source,
        {part: _arrays(data, datasets[0]) for part, datasets in opened.items()},
        _names(data, opened["train"][0]),
        where=lambda part: f"{data.root} ({data.source}, {part})",
        key=_KEY,
    )


def _names(data: TorchvisionData, dataset: Any) -> Sequence[str]:
    if data.source == "svhn":
        return [str(digit) for digit in range(10)]
    return list(getattr(dataset, "classes", _STL10_NAMES))  # torchvision reads STL-10's names where their file is there


def _arrays(data: TorchvisionData, dataset: Any) -> ImageSet:
    pixels = np.asarray(dataset.data)
    if data.source in ("cifar10", "cifar100"):  # [n, h, w, c]
        pixels = pixels.transpose(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(np.asarray(labels).astype(np.int64))
    )


def _file_source(data: TorchvisionData, known: _Known) -> Source:
    opened = _opened(data, known)
    root = Path(os.path.abspath(Path(data.root).expanduser()))
    names = list(opened["train"][0].classes)
    parts: dict[Part, list[ImageFile]] = {}
    for part, datasets in opened.items():
        for dataset in datasets:
            if list(dataset.classes) != names:
                raise DataError(
                    f"{data.source} in {root} has other classes in its parts: {len(names)} and {len(dataset.classes)}, or "
                    "other names; it is damaged",
                    key=_KEY,
                )
        parts[part] = [_image_file(root, *item) for dataset in datasets for item in _listed(data, dataset)]
    return FileSource(
        data.source,
        parts,
        names,
        read=lambda part, path: Path(path).read_bytes(),
        where=lambda part: f"{root} ({data.source}, {part})",
        key=lambda part: _KEY,
        hierarchy=_own_hierarchy(data, known, opened["train"][0]),
    )


def _listed(data: TorchvisionData, dataset: Any) -> list[tuple[str, int]]:
    """Path and label of every image: torchvision keeps them in lists whose names have been stable."""
    if hasattr(dataset, "_samples"):  # StanfordCars
        samples = [(str(path), int(label)) for path, label in dataset._samples]
    else:
        paths = getattr(dataset, "_image_files", getattr(dataset, "_images", None))
        if paths is None or not hasattr(dataset, "_labels"):
            import torchvision

            raise DataError(
                f"torchvision {torchvision.__version__} keeps the files of {data.source} under names that are not known here; "
                "use an earlier torchvision, or an image folder (`source: folder`)",
                key="data.source",
                value=data.source,
            )
        samples = [(str(path), int(label)) for path, label in zip(paths, dataset._labels, strict=True)]
    return samples


def _image_file(root: Path, path: str, label: int) -> ImageFile:
    path = os.path.abspath(path)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"a file of the dataset is missing: {path}: {error.strerror}", key=_KEY) from error
    return ImageFile(path, Path(path).relative_to(root).as_posix(), size, label)


def _own_hierarchy(data: TorchvisionData, known: _Known, dataset: Any) -> Hierarchy | None:
    """Of the datasets whose own files tell how classes belong together."""
    if data.source == "oxford_pets":  # species, breeds
        species: dict[str, set[str]] = {}
        for label, kind in zip(dataset._labels, dataset._bin_labels, strict=True):
            species.setdefault(dataset.bin_classes[kind], set()).add(dataset.classes[label])
        return {kind: sorted(breeds) for kind, breeds in species.items()}
    if data.source == "fgvc_aircraft":  # manufacturers, families, variants
        levels = [
            _open(data, known, {**known.train[0], "annotation_level": level}) for level in ("manufacturer", "family")
        ]
        tree: dict[str, dict[str, set[str]]] = {}
        for maker, family, variant in zip(*(level._labels for level in (*levels, dataset)), strict=True):
            families = tree.setdefault(levels[0].classes[maker], {})
            families.setdefault(levels[1].classes[family], set()).add(dataset.classes[variant])
        return {maker: {family: sorted(v) for family, v in families.items()} for maker, families in tree.items()}
    return None
