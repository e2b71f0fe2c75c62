from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from simlap.config.schema import DigitsData
from simlap.data import ImageSet, TrainLoader, load_splits, loader, memory
from simlap.data.memory import available_memory, check_device_memory, check_memory, total_memory
from simlap.errors import DataError


def test_what_does_not_fit_is_said_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 3_000_000_000)
    check_memory(15_000_000, 2, 10, key="data.image_size")
    with pytest.raises(DataError) as caught:
        check_memory(1_331_167, 3, 224, key="data.image_size")
    assert caught.value.key == "data.image_size"
    for part in ("1,331,167 images", "3 x 224 x 224", "200.4 GB", "3.0 GB", "data.stored_size", "data.fraction"):
        assert part in str(caught.value)


def test_loading_counts_what_it_will_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    need = 1797 * 16 * 16
    monkeypatch.setattr(memory, "available_memory", lambda: need)
    data = DigitsData(source="digits", image_size=8, stored_size=16)
    load_splits(data)
    with pytest.raises(DataError, match=r"data\.stored_size"):  # grey and colour images at once
        load_splits(data, channels=3)
    monkeypatch.setattr(memory, "available_memory", lambda: need - 1)
    with pytest.raises(DataError, match=r"data\.stored_size"):
        load_splits(data)
    load_splits(data.model_copy(update={"fraction": 0.9}))
    load_splits(data.model_copy(update={"classes": (1, 2, 3)}))


def test_the_copies_of_all_workers_here_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000)
    monkeypatch.setattr(memory, "total_memory", lambda: 3_999)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    check_memory(10, 1, 10, key="data.image_size")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(DataError, match="copies of 4 workers") as caught:
        check_memory(10, 1, 10, key="data.image_size")
    assert caught.value.key == "data.image_size"


def test_a_gpu_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images, device = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.device("cuda", 1)
    check_device_memory(images, torch.device("cpu"), key="data.image_size")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked: (1_000 if asked == device else 0, 9_999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1_500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 580)
    check_device_memory(images, device, key="data.image_size")  # 1,920 bytes
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 581)
    with pytest.raises(DataError) as caught:
        check_device_memory(images, device, key="data.stored_size")
    assert (caught.value.key, caught.value.value) == ("data.stored_size", 8)
    for part in ("10 images of 3 x 8 x 8", "cuda:1", "data.stored_size", "data.fraction", "data.classes"):
        assert part in str(caught.value)


def test_the_loader_asks_before_it_moves_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def refuse(images: torch.Tensor, device: torch.device, *, key: str) -> None:
        keys.append(key)
        raise DataError("does not fit", key=key)

    monkeypatch.setattr(loader, "check_device_memory", refuse)
    images = ImageSet(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)
    for stored in (None, 9):
        data = DigitsData(source="digits", stored_size=stored)
        with pytest.raises(DataError):
            TrainLoader(
                images, data=data, mean=(0.5,), std=(0.5,), num_classes=2, batch_size=4, pairs="identical", seed=0
            )
    assert keys == ["data.image_size", "data.stored_size"]


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 300\nfile 500\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container_memory(tmp_path, 9999) == 700
    assert memory._container_memory(tmp_path, 9999, used=False) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path, 9999) == 9999
    (tmp_path / "memory.max").write_text("200\n")
    assert memory._container_memory(tmp_path, 9999) == 0
    assert memory._container_memory(tmp_path / "none", 9999) == 9999


def test_without_psutil_the_whole_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    total = psutil.virtual_memory().total
    assert 0 < available_memory() <= total_memory() <= total
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(memory, "_CGROUP", Path("/nonexistent"))
    assert available_memory() == pytest.approx(total, rel=0.01)
