from __future__ import annotations

import contextlib
import inspect
import io
import re
import tarfile
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torchvision import datasets

from simlap.config.schema import TorchvisionData
from simlap.config.schema.data import TorchvisionName
from simlap.data import inspect_data, load_splits
from simlap.data.torchvision_sets import _ARRAYS, _BY_HAND, _FASHION, _FILES
from simlap.errors import DataError
from tests.unit.data.torchvision_layouts import CIFAR10_NAMES, FASHION_NAMES, LAYOUTS, fashion_mnist, picture


def _data(source: str, root: Path, **fields: Any) -> TorchvisionData:
    return TorchvisionData.model_validate({"source": source, "root": str(root), "validation": "none", **fields})


def _tensor(k: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.from_numpy(picture(k, height, width)).permute(2, 0, 1)


@pytest.fixture(params=sorted(LAYOUTS))
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TorchvisionData:
    LAYOUTS[request.param](tmp_path / "data", monkeypatch)
    return _data(request.param, tmp_path / "data", image_size=16)


def test_every_dataset_of_the_schema_is_tried() -> None:
    assert set(LAYOUTS) == set(get_args(TorchvisionName))


SIZES = {
    "cifar10": (20, 10, 10),
    "cifar100": (200, 100, 100),
    "fashion_mnist": (20, 10, 10),
    "svhn": (20, 10, 10),
    "stl10": (20, 10, 10),
    "flowers102": (204, 102, 102),  # training and validation part are joined
    "oxford_pets": (6, 3, 3),
    "stanford_cars": (4, 2, 2),
    "fgvc_aircraft": (6, 3, 3),
    "food101": (4, 2, 2),
    "dtd": (4, 2, 2),  # training and validation part are joined
}


def test_inspection_agrees_with_loading(dataset: TorchvisionData) -> None:
    info, splits = inspect_data(dataset), load_splits(dataset)
    assert (info.num_train, info.num_test, info.num_classes) == SIZES[dataset.source]
    assert (len(splits.train), len(splits.test)) == (info.num_train, info.num_test)
    assert splits.class_names == info.class_names
    assert splits.hierarchy == info.hierarchy
    assert splits.channels == info.channels == (1 if dataset.source == "fashion_mnist" else 3)
    assert splits.train.images.shape[2:] == splits.test.images.shape[2:] == (16, 16)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.bincount().tolist() == list(info.class_sizes)
    assert (
        splits.test.labels.bincount(minlength=info.num_classes).tolist()
        == [info.num_test // info.num_classes] * info.num_classes
    )


def test_fingerprint_is_that_of_the_data(dataset: TorchvisionData, tmp_path: Path) -> None:
    once = inspect_data(dataset).fingerprint
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = dataset.model_copy(update={"root": str(tmp_path / "moved"), "image_size": 8})
    assert inspect_data(moved).fingerprint == once


def test_what_is_missing_is_named(dataset: TorchvisionData, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError) as caught:
        inspect_data(dataset.model_copy(update={"root": str(nowhere)}))
    text = str(caught.value)
    assert caught.value.key == "data.root"
    assert dataset.source in text
    assert str(nowhere) in text
    remedy = "cars_test_annos_withlabels.mat" if dataset.source == "stanford_cars" else "data.download: true"
    assert remedy in text
    assert not nowhere.exists(), "nothing is downloaded unasked"


def test_a_download_that_fails_is_an_error(
    dataset: TorchvisionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    missing = dataset.model_copy(update={"root": str(tmp_path / "nowhere"), "download": True})
    with pytest.raises(DataError) as caught:
        inspect_data(missing)
    expected = "cannot download it" if dataset.source == "stanford_cars" else "downloading did not help"
    assert expected in str(caught.value)


# --- pixels, labels and names, one by one


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path, monkeypatch)
    splits = load_splits(_data("cifar10", tmp_path))
    assert splits.class_names == tuple(CIFAR10_NAMES)
    assert splits.train.labels.tolist() == [*range(10)] * 2
    for row in (0, 11, 19):
        assert torch.equal(splits.train.images[row], _tensor(row))
    assert torch.equal(splits.test.images[4], _tensor(24))
    assert splits.hierarchy is not None
    assert set(splits.hierarchy) == {"vehicle", "animal"}


def test_cifar100_has_its_superclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar100"](tmp_path, monkeypatch)
    info = inspect_data(_data("cifar100", tmp_path))
    assert info.hierarchy is not None
    assert len(info.hierarchy) == 20
    assert all(len(group) == 5 for group in info.hierarchy.values())


def test_svhn_has_the_digit_zero_as_label_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["svhn"](tmp_path, monkeypatch)
    splits = load_splits(_data("svhn", tmp_path))
    assert splits.class_names == tuple("0123456789")
    assert splits.train.labels.tolist() == [*range(10)] * 2
    assert torch.equal(splits.train.images[13], _tensor(13))


def test_stl10_images_stand_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["stl10"](tmp_path, monkeypatch)
    splits = load_splits(_data("stl10", tmp_path))
    assert splits.class_names[2] == "car"
    assert splits.train.labels.tolist() == [*range(10)] * 2
    assert torch.equal(splits.test.images[3], _tensor(23, 96, 96))
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("\n".join("abcdefghij"))
    assert inspect_data(_data("stl10", tmp_path)).class_names == tuple("abcdefghij")


def test_flowers_take_their_numbers_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["flowers102"](tmp_path, monkeypatch)
    splits = load_splits(_data("flowers102", tmp_path, image_size=6))
    assert splits.class_names[0] == "pink primrose"
    assert splits.train.labels.tolist() == [*range(102)] * 2
    assert torch.equal(splits.train.images[0], _tensor(103, 6, 8)[..., 1:7])
    assert torch.equal(splits.train.images[102], _tensor(205, 6, 8)[..., 1:7])
    assert torch.equal(splits.test.images[0], _tensor(1, 6, 8)[..., 1:7])


def test_pets_know_cats_from_dogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["oxford_pets"](tmp_path, monkeypatch)
    info = inspect_data(_data("oxford_pets", tmp_path))
    assert info.class_names == ("Abyssinian", "Beagle", "Bengal Tiger")
    assert info.hierarchy == {"Cat": ["Abyssinian", "Bengal Tiger"], "Dog": ["Beagle"]}


def test_aircraft_have_families_and_manufacturers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["fgvc_aircraft"](tmp_path, monkeypatch)
    info = inspect_data(_data("fgvc_aircraft", tmp_path))
    assert info.class_names == ("737-200", "737-300", "A320")
    assert info.hierarchy == {"Boeing": {"Boeing 737": ["737-200", "737-300"]}, "Airbus": {"A320": ["A320"]}}


def test_cars_and_food_keep_path_and_label_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, classes, rows in (
        ("stanford_cars", ("Audi S4 Sedan 2012", "BMW M3 Coupe 2012"), [(0, 0), (1, 1), (2, 0), (3, 1)]),
        ("food101", ("apple_pie", "waffles"), [(1, 0), (2, 0), (11, 1), (12, 1)]),
        ("dtd", ("banded", "dotted"), [(0, 0), (10, 1), (1, 0), (11, 1)]),
    ):
        LAYOUTS[name](tmp_path, monkeypatch)
        splits = load_splits(_data(name, tmp_path, image_size=40))
        assert splits.class_names == classes
        for row, (k, label) in enumerate(rows):
            assert splits.train.labels[row] == label
            assert torch.equal(splits.train.images[row], _tensor(k, 40, 50)[..., 5:45])


# --- Fashion-MNIST from IDX files


@pytest.mark.parametrize(("folder", "suffix"), [(".", ""), (".", ".gz"), ("FashionMNIST/raw", ".gz")])
def test_fashion_mnist_wherever_its_files_lie(tmp_path: Path, folder: str, suffix: str) -> None:
    fashion_mnist(tmp_path / folder, suffix)
    data = _data("fashion_mnist", tmp_path)
    splits = load_splits(data)
    assert data.image_size == 28
    assert splits.class_names == tuple(FASHION_NAMES)
    assert splits.train.labels.tolist() == [*range(10)] * 2
    assert torch.equal(splits.test.images[7], _tensor(27, 28, 28)[:1])
    assert splits.hierarchy is not None
    assert set(splits.hierarchy) == {"clothes", "footwear", "bags"}


def test_compressed_files_are_the_same_data(tmp_path: Path) -> None:
    fashion_mnist(tmp_path / "a")
    fashion_mnist(tmp_path / "b", ".gz")
    one, other = (inspect_data(_data("fashion_mnist", tmp_path / name)) for name in "ab")
    assert one.fingerprint == other.fingerprint


def test_a_changed_pixel_changes_the_fingerprint(tmp_path: Path) -> None:
    fashion_mnist(tmp_path)
    once = inspect_data(_data("fashion_mnist", tmp_path)).fingerprint
    path = tmp_path / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert inspect_data(_data("fashion_mnist", tmp_path)).fingerprint != once


# --- damage


def test_a_missing_image_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["food101"](tmp_path, monkeypatch)
    path = tmp_path / "food-101" / "images" / "waffles" / "2.jpg"
    path.unlink()
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        inspect_data(_data("food101", tmp_path))
    assert caught.value.key == "data.root"


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["dtd"](tmp_path, monkeypatch)
    path = tmp_path / "dtd" / "dtd" / "images" / "dotted" / "dotted_1.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_splits(_data("dtd", tmp_path))


def test_a_damaged_annotation_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["stanford_cars"](tmp_path, monkeypatch)
    (tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError, match="damaged") as caught:
        inspect_data(_data("stanford_cars", tmp_path))
    assert caught.value.key == "data.root"


def test_parts_with_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["dtd"](tmp_path, monkeypatch)
    (tmp_path / "dtd" / "dtd" / "labels" / "val1.txt").write_text("dotted/dotted_1.jpg")
    with pytest.raises(DataError, match="other classes"):
        inspect_data(_data("dtd", tmp_path))


def test_labels_beyond_the_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["oxford_pets"](tmp_path, monkeypatch)
    path = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    path.write_text(path.read_text().replace("tiger_3 3 ", "tiger_3 7 "))
    with pytest.raises(DataError, match=r"label 6, and 3 classes") as caught:
        inspect_data(_data("oxford_pets", tmp_path))
    assert caught.value.key == "data.root"


def test_a_part_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["fgvc_aircraft"](tmp_path, monkeypatch)
    (tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt").write_text("")
    with pytest.raises(DataError, match="no test image"):
        inspect_data(_data("fgvc_aircraft", tmp_path))


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_an_archive_cannot_write_beside_its_folder(kind: str, tmp_path: Path) -> None:
    """Nothing of ours unpacks archives; torchvision does, and must go on to refuse what leads out of its folder."""
    from torchvision.datasets.utils import extract_archive

    names = {"above": "../outside", "absolute": str(tmp_path / "outside"), "link": "link/outside"}
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        if kind == "link":
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            archive.addfile(link)
        archive.addfile(tarfile.TarInfo(names[kind]), io.BytesIO())
    with contextlib.suppress(tarfile.FilterError):  # or it strips what leads out
        extract_archive(str(tmp_path / "set.tar.gz"), str(tmp_path / "set"))
    assert not (tmp_path / "outside").exists()


def test_what_torchvision_downloads_is_known_to_it() -> None:
    """Its archives are unpacked only with the MD5 that torchvision knows, but for one."""
    unknown = [
        known.class_name
        for name, known in (*_ARRAYS.items(), *_FILES.items(), ("", _FASHION))
        if name not in _BY_HAND and "md5" not in _source(known.class_name)
    ]
    assert unknown == ["FGVCAircraft"]


def _source(class_name: str) -> str:
    module = inspect.getmodule(getattr(datasets, class_name))
    assert module is not None
    return inspect.getsource(module).lower()
