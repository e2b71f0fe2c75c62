from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simlap.config.schema import Data, Validation
from simlap.data.splits import ImageSet, Splits
from simlap.evaluate.cache import FeatureCache, features_id
from simlap.storage import Storage
from tests.tiny import tiny

FEATURES, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def _splits() -> Splits:
    images = ImageSet(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), LABELS)
    return Splits(images, None, images, ("a", "b", "c"), (0.5,), (0.25,), 8, 8)


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    cache = FeatureCache(Storage(tmp_path), "a" * 64)
    assert cache.get("x", LABELS) is None
    cache.put("x", FEATURES, LABELS)
    got = cache.get("x", LABELS)
    assert got is not None
    assert torch.equal(got, FEATURES)
    assert cache.get("y", LABELS) is None
    assert FeatureCache(Storage(tmp_path), "b" * 64).get("x", LABELS) is None
    with pytest.raises(ValueError, match="checkpoint's checksum"):
        FeatureCache(Storage(tmp_path), "")


@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_damage_is_noticed(place: float, cut: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = FeatureCache(Storage(folder), "a" * 64)
    cache.put("x", FEATURES, LABELS)
    (file,) = folder.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    at = int(place * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 0x15
    file.write_bytes(data)
    got = cache.get("x", LABELS)
    assert got is None or torch.equal(got, FEATURES)  # a changed blank in the header changes nothing


def test_damage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(Storage(tmp_path), "a" * 64)
    cache.put("x", FEATURES, LABELS)
    with caplog.at_level(logging.WARNING, "simlap.evaluate"):
        assert cache.get("x", LABELS.flip(0)) is None
        assert "x.safetensors cannot be used (its labels are not those of the images)" in caplog.text
        (file,) = tmp_path.rglob("*.safetensors")
        file.write_bytes(b"nonsense")
        assert cache.get("x", LABELS) is None
    assert len(caplog.records) == 2


def test_the_id_counts_what_changes_the_images_and_nothing_else() -> None:
    data, splits = tiny().data, _splits()

    def id_of(data: Data = data, fingerprint: str = "f", splits: Splits = splits, part: str = "val") -> str:
        return features_id(data, fingerprint, splits, part)

    same = [
        id_of(data.model_copy(update={"augment": data.augment.model_copy(update={"erase": 0.9})})),
        id_of(data.model_copy(update={"repeated_augmentation": 3, "fingerprint": "f"})),
    ]
    assert set(same) == {id_of()}
    different = [
        id_of(data.model_copy(update={"fraction": 0.5})),
        id_of(data.model_copy(update={"classes": ("a", "b")})),
        id_of(data.model_copy(update={"validation": Validation(split_seed=1)})),
        id_of(data.model_copy(update={"stored_size": 12})),
        id_of(fingerprint="g"),
        id_of(part="test"),
        id_of(splits=replace(splits, mean=(0.4,))),
        id_of(splits=replace(splits, std=(0.3,))),
        id_of(splits=replace(splits, eval_size=9)),
        id_of(splits=replace(splits, interpolation="bicubic")),
    ]
    assert len({id_of(), *different}) == 1 + len(different)
